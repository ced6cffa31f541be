"""The table of variables' types, against BTF where it describes variables: per-CPU ones, of 7.2 some more."""

from __future__ import annotations

from typing import Any

import pytest
from drgn import Type, TypeKind

from images import fixture
from kernel_truth import read
from kvmd.images.linux.btf import Kind
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.variables import VARIABLES, Variables

FOLDERS = ("linux-5.10", "debian-6.1-panic", "swap-7.2")
LATER = {"hardirq_stack_ptr"}  # void * since 5.12, where every BTF describes it


@pytest.fixture(scope="module", params=FOLDERS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    kernel = read(fixture(f"{request.param}/vmcore.kdump").path).kernel
    kernel.need_types()
    return kernel


def described(kernel: Kernel) -> dict[str, Type]:
    """The table's variables that BTF has, too."""
    types = kernel._types
    found = {name: types.btf.find(name, Kind.VAR) for name in VARIABLES.keys() - LATER}
    return {name: types.type(number) for name, number in found.items() if number is not None}


def test_the_table_says_what_btf_says(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = described(kernel)
    assert {"runqueues", "hrtimer_bases", "timer_bases", "kernel_cpustat"} <= theirs.keys()
    find: Any = kernel._types.btf.find
    monkeypatch.setattr(kernel._types.btf, "find", lambda n, *kinds: None if kinds == (Kind.VAR,) else find(n, *kinds))
    variables = Variables(kernel.prog, kernel._types, lambda name: None)
    ours = {name: variables._type(name, 0) for name in theirs}
    assert {name: element(kind) for name, kind in ours.items()} == {n: element(kind) for n, kind in theirs.items()}


def element(kind: Type | None) -> str:
    """The name of a type, or of an array's elements."""
    return "" if kind is None else (kind.type if kind.kind is TypeKind.ARRAY else kind).type_name()
