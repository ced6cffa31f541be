"""Property tests of the readers of BSD dumps: random page tables against a plain model, and arbitrary bytes."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bsd
import bsd_minidump
from bsd import HUGE, LARGE, PAGE, Amd64, Memory, opened, pattern
from kvmd.errors import KvmError, Reason
from kvmd.v1 import memory_pb2

KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
BASE = 0xFFFFFFFF00000000
FAULTS = {Reason.NOT_MAPPED, Reason.BEYOND_DUMP, Reason.EXCLUDED, Reason.SHORT_FILE}
REFUSALS = {
    *(Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE, Reason.UNSUPPORTED_FORMAT, Reason.EMPTY_FILE),
    *(Reason.NO_VMCOREINFO, Reason.SPLIT_IMAGE, Reason.NO_SYMBOLS),
}
Find = Callable[[int], int | Reason]


def model(memory: Memory, find: Find, address: int, length: int) -> bytes | tuple[Reason, int]:
    """What a read answers, page by page: the bytes, or why not and where."""
    data = b""
    while len(data) < length:
        at = address + len(data)
        found = find(at) if at < 1 << 64 else Reason.NOT_MAPPED
        if isinstance(found, Reason):
            return found, min(at, (1 << 64) - 1)
        data += memory.get(found, min(PAGE - at % PAGE, length - len(data)))
    return data


def same(core: bytes, find: Find, memory: Memory, reads: Sequence[tuple[int, int]], space: int = KERNEL) -> None:
    """Compare reads of a dump with the model's."""
    with opened(core) as image:
        for address, length in reads:
            wanted = model(memory, find, address, length)
            try:
                assert image.read(address, length, space) == wanted
            except KvmError as e:
                assert (e.reason, e.address) == wanted


# A few places a level, so that mappings share tables and neighbours are hit.
slots = st.tuples(st.sampled_from([511, 510, 256]), st.integers(509, 511), st.integers(0, 2), st.integers(0, 3))
sizes = st.sampled_from([PAGE, PAGE, PAGE, LARGE, HUGE])
targets = st.integers(0, 40)
offsets = st.integers(-PAGE, 3 * PAGE)
lengths = st.integers(0, 3 * PAGE)


def place(slot: tuple[int, int, int, int], size: int) -> int:
    l4, l3, l2, l1 = slot
    return (0xFFFF << 48 | l4 << 39 | l3 << 30 | l2 << 21 | l1 << 12) & -size


@given(
    st.lists(st.tuples(slots, sizes, targets), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(64, 110), st.integers(1, 8)), max_size=3),
    st.lists(st.tuples(st.integers(0, 5), offsets, lengths), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=80)
def test_kcore_reads_what_its_tables_say(
    maps: list[tuple[tuple[int, int, int, int], int, int]],
    more: list[tuple[int, int]],
    reads: list[tuple[int, int, int]],
) -> None:
    memory = Memory()
    tables = Amd64(memory, free=range(0x10000, 0x40000, PAGE))
    mappings: dict[int, tuple[int, int]] = {}
    for slot, size, target in maps:
        at = place(slot, size)
        if any(at < start + length and start < at + size for start, (_, length) in mappings.items()):
            continue
        physical = (target + 64) * PAGE if size == PAGE else target % 3 * size
        tables.map(at, physical, size)
        mappings[at] = physical, size
    runs, end = [(0, 64 * PAGE)], 64
    for start, count in sorted(more):
        if start >= end:
            runs.append((start * PAGE, count * PAGE))
            end = start + count
    for start, size in runs[1:]:
        for number in range(start // PAGE, (start + size) // PAGE):
            memory.put(number * PAGE, pattern(number))

    def find(at: int) -> int | Reason:
        hit = next((p + at - v for v, (p, size) in mappings.items() if v <= at < v + size), None)
        if hit is None:
            return Reason.NOT_MAPPED
        return hit if any(start <= hit < start + size for start, size in runs) else Reason.BEYOND_DUMP

    starts = list(mappings)
    asked = [(starts[number % len(starts)] + offset, length) for number, offset, length in reads]
    core = bsd.kcore(memory, runs).file()
    same(core, find, memory, [(at, length) for at, length in asked if at < 1 << 64])
    same(core, lambda at: at if find_run(runs, at) else Reason.BEYOND_DUMP, memory, [(64 * PAGE - 9, 99)], PHYSICAL)
    with opened(core) as image:
        found = {page.virtual_address: (page.physical_address, page.length) for page in image.pages(0)}
        assert found == mappings


def find_run(runs: Sequence[tuple[int, int]], at: int) -> bool:
    return any(start <= at < start + size for start, size in runs)


TABLE = 301
"""The page that is the page table of versions 2 and 3, behind all others."""


class MinidumpModel:
    """A minidump of some pages, in ranges or not, and a map of kernbase's first pages; and what it must answer."""

    def __init__(self, version: int, pages: set[int], ranges: Sequence[range], maps: Mapping[int, int]) -> None:
        self.maps, self.ranges = maps, list(ranges) if version == 3 else []
        self.held = {page for page in pages if not self.ranges or any(page in each for each in self.ranges)}
        memory = Memory()
        for page in self.held:
            memory.put(page * PAGE, pattern(page))
        entries = {index: page * PAGE | 1 for index, page in maps.items()}
        if version > 1:
            for index, entry in entries.items():
                memory.word(TABLE * PAGE + index * 8, entry)
            entries = {0: TABLE * PAGE | 1}
            self.held.add(TABLE)
            self.ranges += [range(TABLE, TABLE + 1)] if self.ranges else []
        bounds = [(each.start * PAGE, each.stop * PAGE) for each in self.ranges] or None
        held = {page * PAGE for page in self.held}
        self.made = bsd_minidump.Amd64Minidump(
            memory, held, entries, version, bounds, map_entries=12 if version == 1 else 512
        )
        self.bits = len(self.made.bitmap()) * 8

    def physical(self, at: int) -> int | Reason:
        page = at // PAGE
        if page in self.held:
            return at
        numbered = list(itertools.chain(*self.ranges)) if self.ranges else range(self.bits)
        return Reason.EXCLUDED if page in numbered[: self.bits] else Reason.BEYOND_DUMP

    def kernel(self, at: int) -> int | Reason:
        page = (at - self.made.kernbase) // PAGE
        if page in self.maps:
            return self.physical(self.maps[page] * PAGE + at % PAGE)
        if self.made.dmapbase <= at < self.made.dmapend:
            return self.physical(at - self.made.dmapbase)
        return Reason.NOT_MAPPED


@st.composite
def minidumps(draw: st.DrawFn) -> MinidumpModel:
    edges = sorted(draw(st.lists(st.integers(0, 300), max_size=8)))
    ranges = [range(start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=False) if start < stop]
    pages = draw(st.sets(st.integers(0, 300), max_size=40))
    maps = draw(st.dictionaries(st.integers(0, 11), st.integers(0, 300), max_size=8))
    return MinidumpModel(draw(st.integers(1, 3)), pages, ranges, maps)


@given(
    minidumps(),
    st.lists(st.tuples(st.integers(-1, 13), st.integers(0, PAGE - 1), lengths), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=60)
def test_minidumps_read_what_they_hold(model: MinidumpModel, reads: list[tuple[int, int, int]]) -> None:
    made, core = model.made, model.made.file()
    asked = [(made.kernbase + page * PAGE + inside, length) for page, inside, length in reads]
    same(core, model.kernel, made.memory, asked)
    same(core, model.kernel, made.memory, [(made.dmapbase + page * PAGE, 8) for page in range(0, 310, 7)])
    same(core, model.physical, made.memory, [(page * PAGE, PAGE) for page in range(0, 302, 3)], PHYSICAL)
    with opened(core) as image:
        listed = [page.physical_address // PAGE for page in image.pages(0) if page.virtual_address < made.kernbase]
        assert listed == sorted(model.held)


SEEDS: Mapping[str, bytes] = {
    "k1": bsd.k1().file(),
    "k2": bsd.k2().file()[: 536 + 0x5000],
    "k5": bsd.k5().file()[:0x20000],
    "m1": bsd_minidump.minidump(1).file(),
    "m2": bsd_minidump.minidump(2).file(),
    "m3": bsd_minidump.minidump(3).file(),
    "m4": bsd_minidump.arm64_minidump(),
    "e1": bsd.e1(),
}
EXEC = bsd.kernel(bsd.E1_SYMBOLS)
ADDRESSES = (
    0,
    0x5000,
    bsd.TEXT_BASE,
    bsd_minidump.M_BASE,
    bsd.LARGE_VIRTUAL,
    0xFFFFF80000005000,
    bsd.ARM_TEXT,
    (1 << 64) - 8,
)


def look(data: bytes, execfile: bytes | None = None, dump_offset: int | None = None) -> None:
    """Open, read and walk whatever this is: only errors of the table may come."""
    try:
        with opened(data, execfile, dump_offset) as image:
            for address, space in itertools.product(ADDRESSES, (KERNEL, PHYSICAL)):
                try:
                    assert len(image.read(address, 64, space)) == 64
                except KvmError as e:
                    assert e.reason in FAULTS | {Reason.NO_DUMP_HEADER}
            try:
                for page in itertools.islice(image.pages(0), 500):
                    assert page.length
            except KvmError as e:
                assert e.reason in FAULTS | {Reason.CORRUPT_DATA, Reason.UNSUPPORTED, Reason.NO_DUMP_HEADER}
            image.info()
    except KvmError as e:
        assert e.reason in REFUSALS


@pytest.mark.parametrize("name", SEEDS)
@example([(40, 4, 4_294_963_200)])  # the kernel's map ends behind the last address
@given(
    st.lists(
        st.tuples(st.integers(0, 1100), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1)),
        min_size=1,
        max_size=4,
    )
)
@settings(deadline=None, max_examples=60)
def test_headers_with_numbers_changed(name: str, changes: list[tuple[int, int, int]]) -> None:
    data = bytearray(SEEDS[name])
    for at, size, value in changes:
        data[at : at + size] = struct.pack("<Q", value)[:size]
    look(bytes(data), EXEC if name == "e1" else None)


@pytest.mark.parametrize("name", SEEDS)
@given(st.data())
@settings(deadline=None, max_examples=30)
def test_files_cut_anywhere(name: str, data: st.DataObject) -> None:
    whole = SEEDS[name]
    look(
        whole[: data.draw(st.one_of(st.integers(0, 1200), st.integers(0, len(whole))))], EXEC if name == "e1" else None
    )


@given(
    st.sampled_from(
        [b"\0\x9d\x8f\xca", b"\0\xb7\x8f\xca", b"minidump FreeBSD/amd64\0\0", b"minidump FreeBSD/arm64\0\0"]
    ),
    st.binary(max_size=400),
)
@settings(deadline=None, max_examples=150)
def test_files_of_arbitrary_bytes(magic: bytes, data: bytes) -> None:
    look(magic + data)


@given(st.binary(max_size=100), st.one_of(st.integers(0, 200), st.integers(0, (1 << 64) - 1)))
@settings(deadline=None)
def test_dump_devices_of_arbitrary_bytes(data: bytes, offset: int) -> None:
    look(data + bsd.k1().device()[:600], None, offset)
    look(bsd.k1().device()[:24] + data, None, 0)


@given(st.lists(st.tuples(st.integers(0, 511), st.integers(0, (1 << 64) - 1)), max_size=20))
@settings(deadline=None, max_examples=40)
def test_page_tables_of_arbitrary_entries(entries: list[tuple[int, int]]) -> None:
    """Of a dump of seven pages, all of them tables: nothing is read without end."""
    memory = Memory()
    for number, (index, value) in enumerate(entries):
        memory.word(0x1000 * (number % 7) + index * 8, value & ~0xFFFFFFFF8000 | value % 7 << 12 | 1)
    look(bsd.kcore(memory, [(0, 0x7000)]).file())
