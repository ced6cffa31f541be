"""The page walk against a naive walker on generated tables, and on dumps against drgn and single translations."""

from __future__ import annotations

import itertools
import random
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from drgn import FaultError
from drgn.helpers.linux.mm import follow_phys
from hypothesis import given, settings
from hypothesis import strategies as st

from images import fixture
from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Files
from kvmd.images.linux import walk as walk_module
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.paging_x86 import X86Paging
from kvmd.images.linux.walk import Mapping, PageWalk
from kvmd.v1 import memory_pb2 as pb

PAGE, HUGE, GIANT = 1 << 12, 1 << 21, 1 << 30
PRESENT, RW, PS, NX = 1, 2, 1 << 7, 1 << 63
READ, WRITE, EXECUTE = 1, 2, 4
KERNEL, PHYSICAL = pb.ADDRESS_SPACE_KERNEL, pb.ADDRESS_SPACE_PHYSICAL

Tables = dict[int, dict[int, int]]


class Ram:
    """Tables by physical address, each a mapping from index to entry."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.reads = 0

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        if address not in self.tables:
            raise error(Reason.EXCLUDED, "left out", address=address, readable=0)
        entries = self.tables[address]
        return struct.pack(f"<{length // 8}Q", *(entries.get(i, 0) for i in range(length // 8)))


def made(tables: Tables, levels: int = 4, encryption: int = 0) -> PageWalk:
    return PageWalk(Ram(tables).read, 0x1000, X86Paging(levels, encryption))


def naive(tables: Tables, levels: int) -> list[Mapping]:
    """Every address in turn that the tables have entries for, from the top down."""
    found = []
    sizes = {1: PAGE, 2: HUGE, 3: GIANT}
    indices = sorted({i for entries in tables.values() for i in entries})
    for path in itertools.product(indices, repeat=levels):
        if path[0] < 256:
            continue
        table, allowed = 0x1000, READ | WRITE | EXECUTE
        for depth, index in enumerate(path):
            level, entry = levels - depth, tables.get(table, {}).get(index, 0)
            if not entry & PRESENT:
                break
            allowed &= ~(0 if entry & RW else WRITE) & ~(EXECUTE if entry & NX else 0)
            if level == 1 or (level < 4 and entry & PS):
                virtual = -1 << 48 if levels == 4 else -1 << 57
                for at, i in enumerate(path[: depth + 1]):
                    virtual += i << 12 + 9 * (levels - at - 1)
                physical = (entry & (1 << 52) - 1) // sizes[level] * sizes[level]
                found.append(Mapping(virtual % (1 << 64), physical, sizes[level], allowed))
                break
            table = entry & (1 << 52) - PAGE
    return sorted(set(found), key=lambda m: m.virtual)


entry_bits = st.sampled_from([0, PRESENT, PRESENT | RW, PRESENT | NX, PRESENT | RW | NX, RW | NX, PRESENT | RW | PS])
targets = st.sampled_from([0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x7F_F5E1_2000, 0x1_2345_6000])
tables_strategy = st.fixed_dictionaries(
    {
        table: st.dictionaries(
            st.sampled_from([0, 1, 255, 256, 300, 511]), st.builds(lambda a, b: a | b, targets, entry_bits), max_size=3
        )
        for table in (0x1000, 0x2000, 0x3000, 0x4000, 0x5000)
    }
)


@settings(max_examples=300, deadline=None)
@given(tables_strategy, st.sampled_from([4, 5]), st.integers(0, 1 << 64))
def test_generated_tables(tables: Tables, levels: int, start: int) -> None:
    expected = naive(tables, levels)
    walk = made(tables, levels)
    assert list(walk.mappings()) == expected
    assert (walk.failure is None) == (walk.skipped == 0)
    after = [m for m in expected if m.virtual + m.length > start]
    assert list(made(tables, levels).mappings(start)) == after
    for m in expected[:20]:
        assert made(tables, levels).physical(m.virtual + 8) == m.physical + 8


def chain(leaf: int, **more: int) -> Tables:
    """One mapping at the bottom of the half, its top entry in ``first``."""
    flags = PRESENT | RW
    return {
        0x1000: {256: 0x2000 | flags | more.get("top", 0)},
        0x2000: {0: 0x3000 | flags},
        0x3000: {0: 0x4000 | flags},
        0x4000: {0: leaf},
    }


def test_protection_is_what_every_level_allows() -> None:
    def protection(tables: Tables) -> int:
        (mapping,) = made(tables).mappings()
        return mapping.protection

    assert protection(chain(0x5000 | PRESENT | RW)) == READ | WRITE | EXECUTE
    assert protection(chain(0x5000 | PRESENT)) == READ | EXECUTE
    assert protection(chain(0x5000 | PRESENT | RW | NX)) == READ | WRITE
    assert protection(chain(0x5000 | PRESENT | RW, top=NX)) == READ | WRITE
    read_only = chain(0x5000 | PRESENT | RW)
    read_only[0x3000][0] = 0x4000 | PRESENT
    assert protection(read_only) == READ | EXECUTE


def test_entries_that_are_not_present_map_nothing() -> None:
    for leaf in (0, 0x5000, 0x5000 | RW, 0x5102):
        assert list(made(chain(leaf)).mappings()) == []


def test_an_encrypted_page_lies_where_its_address_says() -> None:
    (mapping,) = made(chain(1 << 51 | 0x5000 | PRESENT), encryption=1 << 51).mappings()
    assert mapping.physical == 0x5000


def test_a_missing_table_is_passed_over_and_told() -> None:
    tables = chain(0x5000 | PRESENT)
    tables[0x2000][1] = 0xAA000 | PRESENT
    tables[0x2000][2] = 0x3000 | PRESENT
    tables[0x2000][3] = 0xBB000 | PRESENT
    walk = made(tables)
    base = 0xFFFF_8000_0000_0000
    assert [m.virtual for m in walk.mappings()] == [base, base + 2 * GIANT]
    assert walk.skipped == 2
    assert walk.failure is not None
    assert (walk.failure.reason, walk.failure.address) == (Reason.EXCLUDED, base + GIANT)


def test_the_top_table_itself_is_missing() -> None:
    walk = made({})
    assert list(walk.mappings()) == []
    assert walk.failure is not None
    assert walk.failure.address == 0xFFFF_8000_0000_0000


@pytest.mark.parametrize("levels", [4, 5])
def test_tables_that_point_to_themselves_stream(levels: int) -> None:
    """A table all of whose entries lead to itself maps the whole half in small pages: no end, but no memory either."""
    walk = made({0x1000: dict.fromkeys(range(512), 0x1000 | PRESENT)}, levels)
    tracemalloc.start()
    began = time.perf_counter()
    first = list(itertools.islice(walk.mappings(), 20_000))
    assert time.perf_counter() - began < 20
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [m.virtual for m in first] == [walk.paging.bottom + PAGE * i for i in range(20_000)]
    assert peak < 64 << 20


def test_one_zero_page_over_and_over_streams_in_bounded_memory() -> None:
    """KASAN's early shadow: the same tables map the same page for terabytes."""
    tables: Tables = {at: dict.fromkeys(range(512), (at + 0x1000) | PRESENT) for at in (0x1000, 0x2000, 0x3000, 0x4000)}
    ram = Ram(tables)
    walk = PageWalk(ram.read, 0x1000, X86Paging(4))
    for mapping in itertools.islice(walk.mappings(), 150_000):
        assert mapping.physical == 0x5000
    assert ram.reads == 4


@pytest.mark.parametrize("levels", [4, 5])
def test_a_maze_without_a_page_ends_at_once(levels: int) -> None:
    """Each table leads to the next 512 times over, and the last maps nothing: none is walked twice."""
    tables: Tables = {0x1000 * n: dict.fromkeys(range(512), 0x1000 * (n + 1) | PRESENT) for n in range(1, levels)}
    tables[0x1000 * levels] = {}
    ram = Ram(tables)
    walk = PageWalk(ram.read, 0x1000, X86Paging(levels))
    assert list(walk.mappings()) == []
    assert ram.reads == levels


def test_an_endless_maze_of_different_tables_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk_module, "_PATIENCE", 500)
    monkeypatch.setattr(walk_module, "_BARREN", 100)

    def maze(address: int, length: int) -> bytes:
        """Two levels of tables that lead to 512 others each, below them as many empty ones."""
        if address >> 40:
            return bytes(length)
        return struct.pack("<512Q", *((address + 1 << 21 | i << 12 | PRESENT) & (1 << 52) - 1 for i in range(512)))

    walk = PageWalk(maze, 0x1000, X86Paging(4))
    with pytest.raises(KvmError) as caught:
        list(walk.mappings())
    assert caught.value.reason is Reason.CORRUPT_DATA
    assert caught.value.address is not None
    assert caught.value.address >= walk.paging.bottom


def test_a_start_does_not_walk_what_lies_before() -> None:
    tables = chain(0x5000 | PRESENT)
    tables[0x1000][511] = 0x6000 | PRESENT
    tables[0x6000] = {0: 0x3000 | PRESENT}
    ram = Ram({at: entries for at, entries in tables.items() if at != 0x2000})
    walk = PageWalk(ram.read, 0x1000, X86Paging(4))
    (mapping,) = walk.mappings(0xFFFF_FF80_0000_0000)
    assert mapping.virtual == 0xFFFF_FF80_0000_0000
    assert (ram.reads, walk.skipped) == (4, 0)
    assert list(made(tables).mappings(2**64 - 1)) == []


@contextmanager
def opened(path: Path) -> Iterator[LinuxImage]:
    with path.open("rb") as file:
        yield LinuxImage(Files(File(file.fileno(), path.name)))


def walked(image: Any, start: int = 0) -> tuple[list[pb.Page], KvmError | None]:
    """The pages, and the error after them."""
    found = []
    try:
        for page in image.pages(start):
            found.append(page)  # noqa: PERF402 - it may fail in the end
    except KvmError as e:
        return found, e
    return found, None


@pytest.fixture(scope="module")
def listed(dump: Any) -> list[pb.Page]:
    pages, failure = walked(dump.image)
    # makedumpfile -d 1 leaves pages of zeroes out of ELF dumps; here a table of vmalloc's that maps nothing.
    assert (failure is not None) == (dump.name == "kdump/vmcore.elfd")
    return pages


def test_the_same_dump_in_two_forms() -> None:
    whole, cut = (fixture(f"kdump/vmcore.{form}") for form in ("kdump", "elfd"))
    with opened(whole.path) as one, opened(cut.path) as two:
        pages, none = walked(one)
        others, failure = walked(two)
    assert none is None
    assert [(p.virtual_address, p.physical_address) for p in others] == [
        (p.virtual_address, p.physical_address) for p in pages
    ]
    assert failure is not None
    assert (failure.reason, failure.metadata["skipped"]) == (Reason.EXCLUDED, "1")


def test_pages_ascend_within_the_kernels_half(dump: Any, listed: list[pb.Page]) -> None:
    assert len(listed) > 4000
    assert listed[0].virtual_address >= (1 << 64) - (1 << 11 + 9 * dump.image.kernel.memory.tables.paging.levels)
    for page, following in itertools.pairwise(listed):
        assert page.virtual_address + page.length <= following.virtual_address
        assert page.length in (PAGE, HUGE, GIANT)
        assert page.virtual_address % page.length == page.physical_address % page.length == 0


def test_each_page_is_where_translations_say(dump: Any, listed: list[pb.Page]) -> None:
    memory = dump.image.kernel.memory
    for page in listed:
        place = memory.translate(page.virtual_address)
        assert (place.physical, place.length) == (page.physical_address, page.length)
        last = memory.translate(page.virtual_address + page.length - 1)
        assert last.physical == page.physical_address + page.length - 1


def test_drgn_translates_the_same(dump: Any, listed: list[pb.Page]) -> None:
    prog = dump.image.kernel.prog
    for page in listed:
        assert follow_phys(prog["init_mm"].address_of_(), page.virtual_address).value_() == page.physical_address


def test_nothing_is_mapped_between(dump: Any, listed: list[pb.Page]) -> None:
    memory, mm = dump.image.kernel.memory, dump.image.kernel.prog["init_mm"].address_of_()
    for page, following in itertools.pairwise(listed):
        end = page.virtual_address + page.length
        if end == following.virtual_address:
            continue
        for address in (end, following.virtual_address - 1, (end + following.virtual_address) // 2):
            with pytest.raises(KvmError):
                memory.translate(address)
            with pytest.raises(FaultError):
                follow_phys(mm, address)


def test_present_pages_can_be_read_and_the_others_not(dump: Any, listed: list[pb.Page]) -> None:
    image, rng = dump.image, random.Random(1)
    for page in rng.sample(listed, 600):
        if page.present:
            data = image.read(page.virtual_address, PAGE, KERNEL)
            assert data == image.read(page.physical_address, PAGE, PHYSICAL)
            if page.HasField("direct_address"):
                assert image.read(page.direct_address, PAGE, KERNEL) == data
        else:
            with pytest.raises(KvmError) as caught:
                image.read(page.virtual_address, 8, KERNEL)
            assert caught.value.reason in (Reason.EXCLUDED, Reason.BEYOND_DUMP)
    assert {page.present for page in listed} == {True, False}


def test_direct_addresses(dump: Any, listed: list[pb.Page]) -> None:
    memory = dump.image.kernel.memory
    base = int.from_bytes(dump.image.read(dump.truth["kallsyms"]["page_offset_base"], 8, KERNEL), "little")
    for page in listed:
        if page.HasField("direct_address"):
            assert page.direct_address == base + page.physical_address
            assert memory.translate(page.direct_address).physical == page.physical_address
        else:
            with pytest.raises(KvmError):
                memory.translate(base + page.physical_address)
    assert {page.HasField("direct_address") for page in listed} == {True, False}


def test_all_ram_is_in_the_direct_map(dump: Any, listed: list[pb.Page]) -> None:
    direct = [p for p in listed if p.HasField("direct_address") and p.direct_address == p.virtual_address]
    mapped = {p.physical_address + at for p in direct for at in range(0, p.length, PAGE)}
    ram = [line.split(" : ") for line in dump.truth["iomem"].splitlines() if line.endswith(" : System RAM")]
    assert ram
    for bounds, _ in ram:
        low, high = (int(word, 16) for word in bounds.strip().split("-"))
        low, high = -(-low // PAGE) * PAGE, (high + 1) // PAGE * PAGE
        assert mapped >= set(range(low, high, PAGE))


def holding(pages: list[pb.Page], address: int) -> pb.Page:
    return next(p for p in pages if p.virtual_address <= address < p.virtual_address + p.length)


def test_the_kernels_own_protection(dump: Any, listed: list[pb.Page]) -> None:
    symbols = dump.truth["kallsyms"]
    assert holding(listed, symbols["_stext"]).protection == READ | EXECUTE
    assert holding(listed, symbols["linux_banner"]).protection == READ
    assert holding(listed, symbols["jiffies"] & -PAGE).protection == READ | WRITE
    assert holding(listed, symbols["init_task"]).protection == READ | WRITE
    assert all(p.protection & READ for p in listed)


def test_a_walk_can_be_taken_up_anywhere(qemu: Any) -> None:
    whole = list(qemu.image.pages(0))
    for index in (0, 1, 700, len(whole) - 2):
        at = whole[index]
        assert list(qemu.image.pages(at.virtual_address + at.length)) == whole[index + 1 :]
        assert list(qemu.image.pages(at.virtual_address + at.length - 1)) == whole[index:]
    assert list(qemu.image.pages(0x1234)) == whole
    assert list(qemu.image.pages(2**64 - 1)) == []


@pytest.mark.parametrize("start", [-1, 1 << 64])
def test_a_start_that_is_no_address(qemu: Any, start: int) -> None:
    with pytest.raises(KvmError) as caught:
        list(qemu.image.pages(start))
    assert caught.value.reason is Reason.BAD_ARGUMENT


def test_a_dump_without_most_tables_says_so_at_the_end(from_bytes: Any) -> None:
    found, failure = walked(from_bytes(fixture("micro/zlib").path.read_bytes()))
    assert len(found) > 1000
    assert failure is not None
    assert failure.reason is Reason.EXCLUDED
    assert int(failure.metadata["skipped"]) > 50
    assert failure.address is not None
    assert failure.address >> 63


def test_streaming_holds_little_memory(dump: Any) -> None:
    tracemalloc.start()
    with suppress(KvmError):
        for _ in dump.image.pages(0):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 << 20
