"""Kernels with all symbols, whose data symbols are withheld: their own table is the oracle of what is found.

These dumps are small, and lack most of the code that tells where data lies: then there is no answer, and never a wrong
one. ``tests/withheld.py`` compares whole dumps.
"""

from __future__ import annotations

from typing import Any

import pytest

import withheld
from images import fixture

STRONG = {"init_task", "init_mm", "linux_banner"}  # whose places need no code


@pytest.mark.parametrize("name", ["qemu", "la57", "hole", "kdump", "debian-6.1-panic"])
def test_nothing_is_guessed_without_code(name: str) -> None:
    _, rows = withheld.compare(fixture(f"{name}/vmcore.kdump").path)
    found = {name: row for name, row in rows.items() if isinstance(row[0], int)}
    assert all(address == told for address, told in found.values()), found
    assert found.keys() >= STRONG
    assert {row[0] for row in rows.values() if row[0] not in (row[1], None)} == set()


@pytest.mark.parametrize("name", ["qemu", "debian-6.1-panic"])
def test_types_are_found_without_their_symbols(name: str) -> None:
    with withheld.withheld(fixture(f"{name}/vmcore.kdump").path) as (kernel, table):
        assert kernel.written("init_task") is None
        assert table("init_task") is not None
        assert kernel.types_source == "btf"
        size: Any = kernel.prog.type("struct list_head").size
        assert size == 16
