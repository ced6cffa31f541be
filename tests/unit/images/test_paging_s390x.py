"""Page tables of s390x, made here from its manual: walked there, and by drgn."""

from __future__ import annotations

import random
from itertools import islice
from types import SimpleNamespace
from typing import cast

import pytest
from drgn import Architecture
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.layout import Layout
from kvmd.images.linux.pagetable import EXECUTE, READ, WRITE, PageTables
from kvmd.images.linux.paging_s390x import S390xPaging, of_kernel
from kvmd.images.linux.program import custom
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.images.linux.walk import PageWalk

ROOT = 0x4000_0000
TABLE = 2048 * 8
SHIFTS = {1: 12, 2: 20, 3: 31, 4: 42, 5: 53}
SIZES = (12, 20, 31)  # of a page, a large segment and a large region
INVALID, PAGE_INVALID, LARGE, PROTECT, NO_EXECUTE, LENGTH = 0x20, 0x400, 0x400, 0x200, 0x100, 3
INFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=40000000\nSYMBOL(lowcore_ptr)=1000\n"


class Ram:
    """Physical memory: the tables that were made, and nothing else."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.next = ROOT

    def table(self, level: int) -> int:
        """Make an empty one."""
        at, self.next = self.next, self.next + TABLE
        empty = PAGE_INVALID if level == 1 else INVALID | (level - 2) << 2
        self.words |= dict.fromkeys(range(at, at + (256 if level == 1 else 2048) * 8, 8), empty)
        return at

    def read(self, address: int, length: int) -> bytes:
        if address not in self.words:
            raise error(Reason.EXCLUDED, "not written", address=address)
        return b"".join(self.words[at].to_bytes(8, "big") for at in range(address, address + length, 8))


def map_page(ram: Ram, top: int, virtual: int, size: int, entry: int) -> int:
    """Write the tables that lead to an entry of a size; answers where it is."""
    table = ROOT if ROOT in ram.words else ram.table(top)
    for level in range(top, 0, -1):
        place = table + 8 * (virtual >> SHIFTS[level] & (255 if level == 1 else 2047))
        if SHIFTS[level] == size:
            ram.words[place] = entry | ((level - 2) << 2 if level > 1 else 0)
            return place
        known = ram.words[place]
        table = known & -0x800 if not known & INVALID else ram.table(level - 1)
        ram.words[place] = table | (level - 2) << 2 | (LENGTH if level > 2 else 0)
    raise AssertionError(size)


def leaf(physical: int, size: int) -> int:
    return physical | (LARGE if size > 12 else 1)


@st.composite
def mapped(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """The level of the uppermost table, a size, a virtual and a physical address."""
    top = draw(st.integers(2, 5))
    size = draw(st.sampled_from([size for level, size in enumerate(SIZES, 1) if level <= top]))
    virtual = draw(st.integers(0, (1 << min(SHIFTS[top] + 11, 64)) - 1))
    return top, size, virtual, draw(st.integers(0, (1 << 52 - size) - 1)) << size


@given(mapped())
@settings(max_examples=100, deadline=None)
def test_every_depth(made: tuple[int, int, int, int]) -> None:
    top, size, virtual, physical = made
    ram, inside = Ram(), virtual % (1 << size)
    map_page(ram, top, virtual, size, leaf(physical, size))
    place = PageTables(ram.read, S390xPaging()).translate(ROOT, virtual)
    assert (place.physical, place.length) == (physical + inside, (1 << size) - inside)
    assert S390xPaging().top(ROOT, ram.read) == top


@given(mapped())
@settings(max_examples=40, deadline=None)
def test_drgn_translates_alike(made: tuple[int, int, int, int]) -> None:
    """All but the last address, which drgn 0.3.0 takes for one beyond the end."""
    top, size, virtual, physical = made
    assume(virtual + 1 < 1 << 64)
    ram, asked = Ram(), list[int]()
    map_page(ram, top, virtual, size, leaf(physical, size))

    def read(address: int, length: int, _offset: int, _physical: bool) -> bytes:
        asked.append(address)
        words = (ram.words.get(at, 0) for at in range(address & -8, address + length, 8))
        return b"".join(word.to_bytes(8, "big") for word in words)[:length]

    layout = cast("Layout", SimpleNamespace(vmcoreinfo=INFO))
    custom(Architecture.S390X, layout, read, INFO).prog.read(virtual, 1)
    known = of_kernel(VmcoreInfo.parse(INFO), 4096)
    assert known is not None
    assert PageTables(ram.read, known[0]).translate(known[1], virtual).physical == asked[-1]


@pytest.mark.parametrize("top", [2, 3, 4])
def test_addresses_that_the_tables_do_not_reach(top: int) -> None:
    """The same bits below them are mapped."""
    ram = Ram()
    map_page(ram, top, 0x1000, 12, leaf(0x5000, 12))
    tables = PageTables(ram.read, S390xPaging())
    assert tables.translate(ROOT, 0x1234).physical == 0x5234
    with pytest.raises(KvmError) as caught:
        tables.translate(ROOT, 0x1234 + (1 << SHIFTS[top] + 11))
    assert caught.value.reason is Reason.NOT_MAPPED


@pytest.mark.parametrize(
    ("size", "entry", "reason"),
    [
        (12, PAGE_INVALID, Reason.NOT_MAPPED),
        (12, PAGE_INVALID | PROTECT | 1 << 12 | 2, Reason.NOT_PRESENT),  # swapped out
        (20, INVALID, Reason.NOT_MAPPED),
        (31, INVALID, Reason.NOT_MAPPED),
        (42, INVALID, Reason.NOT_MAPPED),
        (42, LARGE | LENGTH, Reason.EXCLUDED),  # no page is so large: it is a table's, which isn't there
    ],
)
def test_entries_that_map_nothing(size: int, entry: int, reason: Reason) -> None:
    ram = Ram()
    map_page(ram, 4, 0x1000, size, entry)
    with pytest.raises(KvmError) as caught:
        PageTables(ram.read, S390xPaging()).translate(ROOT, 0x1000)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("size", "entry"),
    [
        (12, 0x5000 | PAGE_INVALID | PROTECT | 1),  # PROT_NONE
        (12, 0x5000 | PAGE_INVALID | PROTECT | 0x31),  # not used of late
        (20, 5 << 20 | LARGE | INVALID | PROTECT),
    ],
)
def test_present_to_linux_alone(size: int, entry: int) -> None:
    ram = Ram()
    map_page(ram, 3, 0, size, entry)
    assert PageTables(ram.read, S390xPaging()).translate(ROOT, 8).physical == (5 << size) + 8
    assert list(PageWalk(ram.read, ROOT, S390xPaging()).mappings()) == []  # the CPU sees none


@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_table_of_another_level_is_none(level: int) -> None:
    """Entries have their table's type; the CPU minds it, too."""
    ram = Ram()
    virtual = (1 << 42) + 0x1000
    place = map_page(ram, 4, virtual, SHIFTS[level], 0x5000 | LENGTH)
    with pytest.raises(KvmError) as caught:  # it leads to what is not there
        PageTables(ram.read, S390xPaging()).translate(ROOT, virtual)
    assert caught.value.reason is Reason.EXCLUDED
    ram.words[place] ^= 4
    with pytest.raises(KvmError) as caught:
        PageTables(ram.read, S390xPaging()).translate(ROOT, virtual)
    assert caught.value.reason in (Reason.NOT_MAPPED, Reason.NOT_PRESENT)


@pytest.mark.parametrize(
    ("above", "own", "allowed"),
    [
        (0, 0, READ | WRITE | EXECUTE),
        (0, PROTECT, READ | EXECUTE),
        (NO_EXECUTE, 0, READ | WRITE),
        (PROTECT, NO_EXECUTE, READ),
    ],
)
def test_a_walk_lists_what_is_mapped(above: int, own: int, allowed: int) -> None:
    ram = Ram()
    map_page(ram, 3, 0x12_3456_7000, 12, 0x5001 | own)
    map_page(ram, 3, 1 << 41, 31, leaf(7 << 31, 31))
    segment = ROOT + 8 * (0x12_3456_7000 >> 31)
    ram.words[segment] |= above
    walk = PageWalk(ram.read, ROOT, S390xPaging())
    found = [(m.virtual, m.physical, m.length, m.protection) for m in walk.mappings()]
    assert found == [
        (0x12_3456_7000, 0x5000, 4096, allowed),
        (1 << 41, 7 << 31, 1 << 31, READ | WRITE | EXECUTE),
    ]
    assert [walk.physical(at) for at in (0x12_3456_7008, (1 << 41) + 1, 0x1000, 1 << 42)] == [
        *(0x5008, (7 << 31) + 1, None, None),
    ]
    assert (walk.skipped, walk.failure) == (0, None)


def test_a_walk_without_its_first_table_says_so() -> None:
    walk = PageWalk(Ram().read, ROOT, S390xPaging())
    assert list(walk.mappings()) == []
    assert walk.failure is not None
    assert (walk.failure.reason, walk.skipped) == (Reason.EXCLUDED, 1)


def test_leaves_are_in_steps_of_what_an_entry_maps() -> None:
    ram = Ram()
    map_page(ram, 3, 0xFF000, 12, leaf(0x5000, 12))
    leaves = PageTables(ram.read, S390xPaging()).leaves(ROOT, 0xFE000)
    assert list(islice(leaves, 3)) == [
        *((0xFE000, 4096, None), (0xFF000, 4096, 0x5000), (0x100000, 1 << 20, None)),
    ]


def test_tables_in_a_circle_end() -> None:
    ram = Ram()
    ram.words |= {ROOT + 8 * i: ROOT | 2 << 2 | LENGTH for i in range(2048)}
    with pytest.raises(KvmError):
        PageTables(ram.read, S390xPaging()).translate(ROOT, 0x1234)


@given(st.integers(0, 2**32), st.integers(0, 2**64 - 1))
@settings(max_examples=300, deadline=None)
def test_any_memory_ends_with_a_place_or_a_reason(seed: int, address: int) -> None:
    rng, reads = random.Random(seed), 0

    def read(at: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        level = rng.randint(0, 3) << 2
        return (rng.getrandbits(64) & ~0x2C | level | rng.choice([0, INVALID])).to_bytes(length, "big")

    try:
        place = PageTables(read, S390xPaging()).translate(ROOT, address)
        assert 0 <= place.physical < 1 << 64
        assert 0 < place.length <= 1 << 31
    except KvmError as e:
        assert e.reason in (Reason.NOT_MAPPED, Reason.NOT_PRESENT)
    assert reads <= 6


@pytest.mark.parametrize(
    ("lines", "root"),
    [
        ("KERNELOFFSET=3ff000", ROOT),
        ("KERNELOFFSET=30000000\nKERNELOFFPHYS=100000", 0x1010_0000),
        ("", ROOT),
    ],
)
def test_where_the_kernels_own_begin(lines: str, root: int) -> None:
    known = of_kernel(VmcoreInfo.parse(f"SYMBOL(swapper_pg_dir)=40000000\n{lines}".encode()), 4096)
    assert known is not None
    assert known[1] == root


def test_what_vmcoreinfo_must_tell() -> None:
    assert of_kernel(VmcoreInfo.parse(b"OSRELEASE=6.1.0\n"), 4096) is None


def test_any_type() -> None:
    """Every type that a first entry may have is a level's."""
    assert [S390xPaging().top(ROOT, lambda _at, n, w=w: (w << 2 | 3).to_bytes(n, "big")) for w in range(4)] == [
        *(2, 3, 4, 5),
    ]
