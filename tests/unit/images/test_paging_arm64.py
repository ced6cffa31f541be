"""Page tables of arm64: made here from the architecture's manual, walked there; and those of a real kernel."""

from __future__ import annotations

import random
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
from drgn import Architecture
from hypothesis import given, settings
from hypothesis import strategies as st

from images import fixture
from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.layout import Layout
from kvmd.images.linux.pagetable import PageTables, Paging
from kvmd.images.linux.paging_arm64 import Arm64Paging, of_kernel
from kvmd.images.linux.program import custom
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.images.linux.walk import PageWalk
from kvmd.v1 import memory_pb2

from .conftest import Opened, opened

NAME = "arm64-6.1/vmcore.kdump"
ROOT = 0x4000_0000
USER = memory_pb2.ADDRESS_SPACE_USER
# Granule, bits that are translated, levels, and the sizes that one entry can map: DDI 0487, tables D8-9 to D8-14.
GEOMETRIES = [
    (12, 39, 3, (12, 21, 30)),
    (12, 48, 4, (12, 21, 30)),
    (12, 52, 5, (12, 21, 30, 39)),
    (14, 36, 2, (14, 25)),
    (14, 47, 3, (14, 25)),
    (14, 48, 4, (14, 25)),
    (14, 52, 4, (14, 25, 36)),
    (16, 42, 2, (16, 29)),
    (16, 48, 3, (16, 29)),
    (16, 52, 3, (16, 29, 42)),
]


class Ram:
    """Physical memory as a table of words; what was not written is not there."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.next = ROOT

    def read(self, address: int, length: int) -> bytes:
        if address not in self.words:
            raise error(Reason.EXCLUDED, "not written", address=address)
        return self.words[address].to_bytes(length, "little")


def output(physical: int, granule: int, wide: bool) -> int:
    """An entry's address bits, with the highest where 52 bits put them."""
    if not wide:
        return physical
    if granule == 16:
        return physical & (1 << 48) - 1 | (physical >> 48) << 12
    return physical & (1 << 50) - 1 | (physical >> 50) << 8


class Leaf(NamedTuple):
    """What the last entry is to say; ``size`` as a power of two."""

    physical: int
    size: int
    flags: int
    wide: bool = False


def map_page(ram: Ram, bits: int, granule: int, virtual: int, leaf: Leaf) -> int:
    """Write the tables that map a page or block; answers the address of the last entry."""
    stride = granule - 3
    shifts = [granule + stride * level for level in range(8) if granule + stride * level < bits][::-1]
    table = ROOT
    for shift in shifts:
        index = virtual % (1 << bits) >> shift & (1 << stride) - 1
        place = table + 8 * index
        if shift == leaf.size:
            ram.words[place] = output(leaf.physical, granule, leaf.wide) | leaf.flags
            return place
        ram.next += 1 << granule
        ram.words[place] = output(ram.next, granule, leaf.wide) | 3
        table = ram.next
    raise AssertionError(leaf)


@pytest.mark.parametrize(("granule", "bits", "levels", "sizes"), GEOMETRIES)
@given(st.data())
@settings(max_examples=40, deadline=None)
def test_every_geometry(granule: int, bits: int, levels: int, sizes: tuple[int, ...], data: Any) -> None:
    wide = bits == 52
    paging = Arm64Paging(granule, bits, wide=wide)
    size = data.draw(st.sampled_from(sizes))
    kernel = data.draw(st.booleans())
    virtual = data.draw(st.integers(0, (1 << bits) - 1)) + ((1 << 64) - (1 << bits) if kernel else 0)
    physical = data.draw(st.integers(0, (1 << (52 if wide else 48) - size) - 1)) << size
    attributes = data.draw(st.sampled_from([0, 1 << 10 | 1 << 6, 1 << 54 | 1 << 53 | 1 << 52 | 1 << 55]))
    ram = Ram()
    map_page(ram, bits, granule, virtual, Leaf(physical, size, attributes | (3 if size == granule else 1), wide))
    place = PageTables(ram.read, paging).translate(ROOT, virtual)
    inside = virtual % (1 << size)
    assert (paging.levels, place.physical, place.length) == (levels, physical + inside, (1 << size) - inside)
    tag = data.draw(st.integers(0, 255)) << 56
    tagged = virtual & (1 << 56) - 1 | tag
    if bits < 56:
        assert PageTables(ram.read, paging).translate(ROOT, tagged).physical == place.physical


@pytest.mark.parametrize(("granule", "bits", "levels", "sizes"), GEOMETRIES)
@given(st.data())
@settings(max_examples=10, deadline=None)
def test_drgn_translates_alike(granule: int, bits: int, levels: int, sizes: tuple[int, ...], data: Any) -> None:
    """drgn walks the tables with code of its own, told by the same VMCOREINFO; it then reads where they lead."""
    wide, size = bits == 52, data.draw(st.sampled_from(sizes))
    # But for the highest entry: drgn 0.3.0 reads nothing of the last page of 64 KiB.
    virtual = (1 << 64) - (1 << bits) + data.draw(st.integers(0, (1 << bits) - (1 << size) - 1))
    physical = data.draw(st.integers(1, (1 << (52 if wide else 48) - size) - 1)) << size
    ram, asked = Ram(), list[int]()
    map_page(ram, bits, granule, virtual, Leaf(physical, size, 3 if size == granule else 1, wide))

    def read(address: int, length: int, _offset: int, _physical: bool) -> bytes:
        asked.append(address)
        words = (ram.words.get(at, 0) for at in range(address & -8, address + length, 8))
        return b"".join(word.to_bytes(8, "little") for word in words)[:length]

    told = info(VA_BITS=bits, TCR_EL1_T1SZ=f"{64 - bits:#x}", MAX_PHYSMEM_BITS=52 if wide else 48)
    layout = cast("Layout", SimpleNamespace(vmcoreinfo=told.text + f"\nPAGESIZE={1 << granule}\n".encode()))
    custom(Architecture.AARCH64, layout, read, layout.vmcoreinfo).prog.read(virtual, 1)
    known = of_kernel(told, 1 << granule)
    assert known is not None
    assert (known[0].levels, known[1]) == (levels, ROOT)
    place = PageTables(ram.read, known[0]).translate(ROOT, virtual)
    assert place.physical == asked[-1] == physical + virtual % (1 << size)


@pytest.mark.parametrize(
    ("release", "bit", "level"), [("6.1", 58, 1), ("6.1", 59, 2), ("6.12", 11, 1), ("6.12", 11, 2)]
)
def test_present_to_linux_alone(release: str, bit: int, level: int) -> None:
    known = of_kernel(info(VA_BITS=48, release=release), 4096)
    assert known is not None
    paging = known[0]
    ram, shift = Ram(), 12 + 9 * (level - 1)
    place = map_page(ram, 48, 12, 0x1234_5678_9000, Leaf(5 << 30, shift, 1 << bit | (2 if level == 1 else 0)))
    inside = 0x1234_5678_9000 % (1 << shift)
    assert PageTables(ram.read, paging).translate(ROOT, 0x1234_5678_9000).physical == (5 << 30) + inside
    ram.words[place] &= ~(1 << bit)
    with pytest.raises(KvmError) as caught:
        PageTables(ram.read, paging).translate(ROOT, 0x1234_5678_9000)
    assert caught.value.reason is Reason.NOT_PRESENT


@pytest.mark.parametrize("address", [1 << 48, 1 << 54, (1 << 64) - (1 << 48) - 1, 1 << 55])
def test_addresses_of_no_table(address: int) -> None:
    with pytest.raises(KvmError, match="canonical"):
        PageTables(Ram().read, Arm64Paging(12, 48)).translate(ROOT, address)


@pytest.mark.parametrize("entry", [0, 1 << 63 | 0x100, 2, 1])
def test_last_entries_that_map_nothing(entry: int) -> None:
    ram = Ram()
    map_page(ram, 48, 12, 0x1000, Leaf(0, 12, entry))
    with pytest.raises(KvmError) as caught:
        PageTables(ram.read, Arm64Paging(12, 48)).translate(ROOT, 0x1000)
    assert caught.value.reason is (Reason.NOT_PRESENT if entry else Reason.NOT_MAPPED)


def test_blocks_where_none_can_be() -> None:
    """The first table of a 48-bit space with 4 KiB pages maps tables only."""
    ram = Ram()
    map_page(ram, 48, 12, 0, Leaf(0, 39, 1))
    with pytest.raises(KvmError) as caught:
        PageTables(ram.read, Arm64Paging(12, 48)).translate(ROOT, 0)
    assert caught.value.reason is Reason.NOT_MAPPED


def test_tables_that_cannot_be_read_are_passed_over_whole() -> None:
    ram = Ram()
    map_page(ram, 48, 12, 0, Leaf(5 << 30, 30, 1))
    leaves = PageTables(ram.read, Arm64Paging(12, 48)).leaves(ROOT, 0)
    assert next(leaves) == (0, 1 << 30, 5 << 30)
    assert list(islice(leaves, 3)) == [((1 << 30) + i * (2 << 20), 2 << 20, None) for i in range(3)]


def test_tables_in_a_circle_end() -> None:
    ram = Ram()
    ram.words |= {ROOT + 8 * i: ROOT | 3 for i in range(512)}
    assert PageTables(ram.read, Arm64Paging(12, 48)).translate(ROOT, 0x1234).physical == ROOT + 0x234


@given(st.integers(0, 2**32), st.sampled_from(GEOMETRIES), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_any_memory_ends_with_a_place_or_a_reason(seed: int, geometry: tuple[int, int, int, Any], address: int) -> None:
    rng, reads = random.Random(seed), 0

    def read(at: int, length: int) -> bytes:
        nonlocal reads
        reads += 1
        assert 0 <= at < 1 << 52
        return (rng.getrandbits(64) | rng.choice([0, 1, 3])).to_bytes(length, "little")

    paging = Arm64Paging(geometry[0], geometry[1], wide=geometry[1] == 52)
    try:
        place = PageTables(read, paging).translate(ROOT, address)
        assert 0 <= place.physical < 1 << 52
        assert place.length > 0
    except KvmError as e:
        assert e.reason in (Reason.NOT_MAPPED, Reason.NOT_PRESENT)
    assert reads <= 5


def info(release: str = "6.1.0", **numbers: int | str) -> VmcoreInfo:
    lines = [
        "SYMBOL(swapper_pg_dir)=ffff800008000000",
        "NUMBER(kimage_voffset)=0xffff7fffc8000000",
        f"OSRELEASE={release}",
    ]
    return VmcoreInfo.parse("\n".join([*lines, *(f"NUMBER({k})={v}" for k, v in numbers.items())]).encode())


@pytest.mark.parametrize(
    ("page", "numbers", "levels", "user_end"),
    [
        (4096, {"VA_BITS": 48, "TCR_EL1_T1SZ": "0x10"}, 4, 1 << 48),
        (4096, {"VA_BITS": 39}, 3, 1 << 39),
        (4096, {"VA_BITS": 52, "TCR_EL1_T1SZ": "0xc"}, 5, 1 << 52),
        # Built for 52 bits, on a CPU with 48: with small pages the upper level is left out, with large ones it stays.
        (4096, {"VA_BITS": 52, "TCR_EL1_T1SZ": "0x10"}, 4, 1 << 48),
        (65536, {"VA_BITS": 52, "TCR_EL1_T1SZ": "0x10"}, 3, 1 << 48),
        (65536, {"VA_BITS": 42}, 2, 1 << 42),
        (16384, {"VA_BITS": 47}, 3, 1 << 47),
    ],
)
def test_what_vmcoreinfo_tells(page: int, numbers: dict[str, Any], levels: int, user_end: int) -> None:
    known = of_kernel(info(**numbers), page)
    assert known is not None
    paging, root = known
    assert (paging.levels, paging.user_end, root) == (levels, user_end, ROOT)
    assert paging.page_size == page


@pytest.mark.parametrize(("page", "numbers"), [(4096, {}), (8192, {"VA_BITS": 48}), (4096, {"VA_BITS": 99})])
def test_what_it_must_tell(page: int, numbers: dict[str, Any]) -> None:
    assert of_kernel(info(**numbers), page) is None


@pytest.fixture(scope="module")
def arm64() -> Any:
    path, truth = fixture(NAME)
    with opened(path) as image:
        yield Opened(image, truth, NAME)


def root_of(dump: Opened, pid: int) -> int:
    mm: Any = dump.image._user._mm(dump.image._processes.memory(pid))
    return dump.image.kernel.memory.translate(mm["pgd"]).physical


def test_pages_lie_where_the_guest_said(arm64: Opened) -> None:
    """/proc/PID/pagemap told the physical address of each, and the swap slot of those that were out."""
    tables = arm64.image.kernel.memory.walkable()
    seen = {True: 0, False: 0}
    for page in arm64.truth["pages"]:
        root = root_of(arm64, page["pid"])
        if page["present"]:
            assert tables.translate(root, page["vaddr"]).physical == page["paddr"]
        elif page["swapped"]:
            with pytest.raises(KvmError) as caught:
                tables.translate(root, page["vaddr"])
            entry = int(caught.value.metadata["entry"], 16)
            known = arm64.image._pages._decoder.decode(entry)
            assert (caught.value.reason, known.type, known.offset) == (
                *(Reason.NOT_PRESENT, page["swap_type"], page["swap_offset"]),
            )
        seen[page["present"]] += 1
    assert min(seen.values()) > 20, seen


def test_a_huge_page_is_one_block(arm64: Opened) -> None:
    page = next(page for page in arm64.truth["pages"] if page["what"] == "thp")
    tables: PageTables = arm64.image.kernel.memory.walkable()
    assert tables.last(root_of(arm64, page["pid"]), page["vaddr"])[1] == 2


def test_a_tagged_address_is_its_own(arm64: Opened) -> None:
    page = next(page for page in arm64.truth["pages"] if page["present"])
    plain = arm64.image.read(page["vaddr"], 64, USER, page["pid"])
    assert plain.startswith(f"BED {page['name']} {page['what']} ".encode())
    assert arm64.image.read(page["vaddr"] | 0x5A << 56, 64, USER, page["pid"]) == plain


@pytest.mark.parametrize("address", [1 << 48, 0xFFFF_8000_0800_0000, (1 << 64) - 8])
def test_the_kernels_addresses_are_no_processes(arm64: Opened, address: int) -> None:
    with pytest.raises(KvmError) as caught:
        arm64.image.read(address, 8, USER, 1)
    assert caught.value.reason is Reason.NOT_MAPPED


@pytest.mark.parametrize("address", [0, 0x1000, (1 << 48) - 8])
def test_users_addresses_are_not_the_kernels(arm64: Opened, address: int) -> None:
    with pytest.raises(KvmError) as caught:
        arm64.image.kernel.memory.translate(address)
    assert caught.value.reason is Reason.NOT_MAPPED


def test_paging_is_abstract() -> None:
    with pytest.raises(TypeError):
        Paging(12, 48)  # type: ignore[abstract]


@pytest.mark.parametrize(("shift", "bits", "size"), [(14, 52, 256), (14, 48, 16), (12, 52, 128), (16, 48, 512)])
def test_a_top_level_table_of_less_than_a_page_begins_anywhere_in_one(shift: int, bits: int, size: int) -> None:
    """As those of processes: from a cache (arch/arm64/mm/pgd.c)."""
    paging, ram = Arm64Paging(shift, bits, wide=bits == 52), Ram()
    root, virtual = ROOT + 3 * size, 0x7F_DAC5_BFA3
    table = root
    for level in range(paging.levels, 0, -1):
        below = ROOT + (paging.levels - level + 1 << 20)
        ram.words[table + 8 * paging.index(virtual, level)] = below | (3 if level > 1 else 0x403)
        table = below
    tables = PageTables(ram.read, paging)
    assert paging.start(root) == root
    assert paging.start(root | 1) == root
    assert tables.translate(root, virtual).physical == table + virtual % (1 << shift)
    assert PageWalk(ram.read, root, paging)._root == root


@pytest.mark.parametrize(("shift", "bits"), [(12, 48), (14, 47), (12, 39), (16, 52)])
def test_others_begin_on_a_page(shift: int, bits: int) -> None:
    paging = Arm64Paging(shift, bits)
    assert paging.start(ROOT + 5) == paging.start(ROOT + (8 * paging.count(paging.levels) - 1)) == ROOT
