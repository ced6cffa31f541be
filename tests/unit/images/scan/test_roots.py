"""Top-level page tables found by what they map: of every layout, in memory that a test made; and what is none."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.pagetable import Paging
from kvmd.images.linux.paging_x86 import KERNEL_MAP, X86Paging
from kvmd.images.linux.scan.retrace import LAYOUTS, Layout
from kvmd.images.linux.scan.roots import Image, Root, roots
from pagetables import Tables

ALL = [layout for layouts in LAYOUTS.values() for layout in layouts]
PAGINGS: list[Paging] = [layout.paging for layout in ALL]
MIB, GIB = 1 << 20, 1 << 30
_ALL = (1 << 64) - 1


class Made(NamedTuple):
    tables: Tables
    image: Image
    distance: int
    linear: int


def made(paging: Paging, moved: int = 5, memory: int = 3, linear: int = 7) -> Made:
    """A kernel of 1 MiB: code, symbols' tables, and its own table at the end.

    :param moved: its virtual address, in steps of 2 MiB.
    :param memory: where memory begins, in GiB.
    :param linear: where all memory is mapped, in GiB.
    """
    physical = memory * GIB + 2 * MIB
    if isinstance(paging, X86Paging):
        virtual = KERNEL_MAP + moved * 2 * MIB
        whole = (paging.base + (1 << 47 if paging.levels == 4 else 1 << 56)) + linear * GIB
    else:
        virtual = paging.kernel + (paging.user_end >> 1) + (2 << 30) + moved * 2 * MIB
        whole = paging.kernel + linear * GIB
    root = physical + 3 * MIB // 4
    tables = Tables(paging, root, physical + MIB)
    size = paging.page_size
    for at in range(0, MIB, size):
        tables.map(virtual + at, physical + at)
    tables.hold(range(physical, physical + MIB, size))
    for at in (physical, physical + MIB // 2, root):
        page = at & -size
        tables.map(whole + page - memory * GIB, page)
    distance = virtual - physical & _ALL
    image = Image(virtual, virtual + MIB // 4 - 64, physical + MIB // 2 + 24)
    return Made(tables, image, distance, whole - memory * GIB)


def found(it: Made) -> list[Root]:
    return list(roots(it.tables.read, it.tables.runs, it.image, it.tables.paging))


@pytest.mark.parametrize("number", range(len(PAGINGS)))
def test_the_table_of_every_layout(number: int) -> None:
    it = made(PAGINGS[number])
    (root,) = found(it)
    assert (root.physical, root.distance, root.linear) == (it.tables.root, it.distance, it.linear)
    assert root.maps(it.image.place)
    assert not root.maps(it.image.place + 64 * MIB)


@pytest.mark.parametrize("layouts", LAYOUTS.values(), ids=lambda layouts: type(layouts[0].paging).__name__)
def test_no_other_layout_takes_it(layouts: tuple[Layout, ...]) -> None:
    for layout in layouts:
        it = made(layout.paging)
        took = [one for one in layouts if list(one.roots(it.tables.read, it.tables.runs, it.image))]
        assert took == [layout]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(PAGINGS), st.integers(0, 200), st.integers(0, 40), st.integers(0, 60))
def test_wherever_the_kernel_is(paging: Paging, moved: int, memory: int, linear: int) -> None:
    it = made(paging, moved, memory, linear)
    assert [(root.physical, root.distance, root.linear) for root in found(it)] == [
        (it.tables.root, it.distance, it.linear)
    ]


@pytest.mark.parametrize("paging", [PAGINGS[0], PAGINGS[3]])
def test_a_table_of_a_process_does_not_count(paging: Paging) -> None:
    """It maps all that the kernel's does, but does not lie in the image."""
    it = made(paging)
    other = it.tables.root + 64 * MIB
    it.tables.pages[other] = bytearray(it.tables.pages[it.tables.root])
    assert [root.physical for root in found(it)] == [it.tables.root]


@pytest.mark.parametrize("paging", [PAGINGS[0], PAGINGS[3]])
def test_a_copy_in_the_image_is_a_second_one(paging: Paging) -> None:
    it = made(paging)
    other = it.tables.root - 8 * paging.page_size
    it.tables.pages[other] = bytearray(it.tables.pages[it.tables.root])
    assert [root.physical for root in found(it)] in ([it.tables.root], [other, it.tables.root])
    page = other & -paging.page_size
    it.tables.map(it.linear + page, page)
    assert sorted(root.physical for root in found(it)) == [other, it.tables.root]


@pytest.mark.parametrize("paging", PAGINGS)
def test_what_lacks_something_is_none(paging: Paging) -> None:
    def without(virtual: int) -> list[Root]:
        it = made(paging)
        it.tables.map(virtual, 0)
        return found(it)

    it = made(paging)
    needed = (it.image.stext, it.image.etext - 1, it.image.place + it.distance, it.tables.root + it.distance)
    for virtual in (*needed, it.tables.root + it.linear, it.image.place + it.linear):
        assert without(virtual & _ALL & -paging.page_size) == [], hex(virtual)


@pytest.mark.parametrize("paging", PAGINGS)
def test_tables_that_lead_to_themselves_end(paging: Paging) -> None:
    it = made(paging)
    entry = it.tables.root | it.tables._table
    for place in range(0, paging.page_size, 8):
        it.tables.word(it.tables.root + place, entry)
    started = time.monotonic()
    assert found(it) == []
    assert time.monotonic() - started < 5


def test_too_many_are_an_error() -> None:
    it = made(PAGINGS[0])
    for number in range(1, 40):
        other = it.tables.root - number * 4096
        it.tables.pages[other] = bytearray(it.tables.pages[it.tables.root])
    with pytest.raises(KvmError) as caught:
        found(it)
    assert caught.value.reason is Reason.AMBIGUOUS
