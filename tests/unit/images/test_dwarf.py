"""BTF, kallsyms and drgn's helpers on them, against what drgn read with DWARF from the vmlinux of the same build.

``dwarf.json`` was made by tests/guest/dwarf_truth.py.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from typing import Any

import drgn
import pytest
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.fs import for_each_mount, mount_dst
from drgn.helpers.linux.module import for_each_module
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import for_each_slab_cache

from images import DATA, fixture
from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import memory_pb2

NAME = "debian-6.1-panic"
TRUTH: dict[str, Any] = json.loads((DATA / NAME / "dwarf.json").read_text())


@pytest.fixture(scope="module")
def image() -> Iterator[LinuxImage]:
    path = fixture(f"{NAME}/vmcore.kdump").path
    fd = os.open(path, os.O_RDONLY)
    yield LinuxImage(Files(File(fd, str(path))))
    os.close(fd)


@pytest.fixture(scope="module")
def prog(image: LinuxImage) -> drgn.Program:
    image.kernel.need_types()
    return image.kernel.prog


def test_the_truth_is_large_enough() -> None:
    assert len(TRUTH["members"]) >= 100
    assert len(TRUTH["tasks"]) >= 70


@pytest.mark.parametrize("name", TRUTH["members"])
def test_members_lie_where_dwarf_has_them(prog: drgn.Program, name: str) -> None:
    struct, _, member = name.partition(".")
    found = prog.type(f"struct {struct}").member(member)
    size = found.bit_field_size or 8 * drgn.sizeof(found.type)
    assert [found.bit_offset, size] == TRUTH["members"][name]


def test_sizes(prog: drgn.Program) -> None:
    assert {name: drgn.sizeof(prog.type(f"struct {name}")) for name in TRUTH["sizes"]} == TRUTH["sizes"]


def test_constants(prog: drgn.Program) -> None:
    assert {name: prog[name].value_() for name in TRUTH["constants"]} == TRUTH["constants"]


def test_symbols(image: LinuxImage) -> None:
    answer = image.symbols(list(TRUTH["symbols"]))
    assert {symbol.name: symbol.value for symbol in answer} == {
        name: value for name, (value, _) in TRUTH["symbols"].items()
    }


def test_helpers_of_drgn_need_no_debuginfo(prog: drgn.Program) -> None:
    tasks = sorted([task.pid.value_(), task.comm.string_().decode(), task.value_()] for task in for_each_task(prog))
    assert tasks == TRUTH["tasks"]
    assert sorted(module.name.string_().decode() for module in for_each_module(prog)) == TRUTH["modules"]
    assert sorted(cache.name.string_().decode() for cache in for_each_slab_cache(prog)) == TRUTH["caches"]
    assert sorted(mount_dst(mount).decode() for mount in for_each_mount(prog)) == TRUTH["mounts"]
    assert list(for_each_online_cpu(prog)) == TRUTH["cpus"]


@pytest.mark.parametrize(
    "name", ["qemu/vmcore.kdump", "la57/vmcore.kdump", "hole/vmcore.kdump", "kdump/vmcore.elfd", f"{NAME}/vmcore.kdump"]
)
def test_thousand_random_reads_equal_drgns_own(name: str) -> None:
    """Virtual and physical, of any length: the same bytes, or a fault where drgn has one (or zeroes in an ELF dump)."""
    path = fixture(name).path
    plain = drgn.Program()
    plain.set_core_dump(str(path))
    fd = os.open(path, os.O_RDONLY)
    image = LinuxImage(Files(File(fd, str(path))))
    rng = random.Random(name)
    symbols = [address for address in fixture(name).truth["kallsyms"].values() if address > 1 << 63]
    read = 0
    for turn in range(1000):
        physical = turn % 2 == 1
        base = rng.randrange(0, 1 << 27) if physical else rng.choice(symbols) + rng.randrange(-4096, 1 << 16)
        length = rng.choice([1, 8, 64, 4096, 5000])
        space = memory_pb2.ADDRESS_SPACE_PHYSICAL if physical else memory_pb2.ADDRESS_SPACE_KERNEL
        try:
            expected: bytes | None = plain.read(base, length, physical)
        except drgn.FaultError:
            expected = None
        try:
            assert image.read(base, length, space) == expected
            read += 1
        except KvmError as failure:
            assert expected is None or (path.name.endswith("elfd") and failure.reason.value == "EXCLUDED")
            assert base <= (failure.address or 0) < base + length
    os.close(fd)
    assert read > 100
