"""Reads of memory, and what a read that fails says."""

from __future__ import annotations

import random
import struct
from itertools import islice
from typing import Any

import pytest
from drgn import FaultError

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import CHUNK
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.pagetable import PageTables
from kvmd.images.linux.paging_x86 import X86Paging
from kvmd.v1 import memory_pb2 as pb

KERNEL, PHYSICAL = pb.ADDRESS_SPACE_KERNEL, pb.ADDRESS_SPACE_PHYSICAL
PAGE = 4096


def fails(image: Any, address: int, length: int, space: pb.AddressSpace = KERNEL) -> KvmError:
    with pytest.raises(KvmError) as caught:
        image.read(address, length, space)
    return caught.value


def trouble(image: Any, wanted: Reason | None) -> int:
    """The first page of a kind; 128 MiB of RAM are looked through."""
    layout = image.kernel.dump.layout
    return next(a for a in range(0, 128 << 20, PAGE) if layout.trouble(a) is wanted)


def test_reads_are_exact(dump: Any) -> None:
    banner = dump.truth["kallsyms"]["linux_banner"]
    text = dump.truth["banner"].encode() + b"\n\0"
    assert dump.image.read(banner, len(text), KERNEL) == text
    assert dump.image.read(banner, 5, pb.ADDRESS_SPACE_UNSPECIFIED) == b"Linux"
    assert dump.image.read(banner, 0, KERNEL) == b""
    assert len(dump.image.read(banner & -PAGE, 3 * PAGE, KERNEL)) == 3 * PAGE


def test_physical_and_virtual_reads_agree(dump: Any) -> None:
    kernel = dump.image.kernel
    banner = dump.truth["kallsyms"]["linux_banner"]
    place = kernel.memory.tables.translate(kernel.memory.root, banner)
    assert dump.image.read(place.physical, 64, PHYSICAL) == dump.image.read(banner, 64, KERNEL)
    assert kernel.memory.tables.paging.levels == (5 if dump.name.startswith("la57") else 4)


def test_what_is_remembered_of_places_is_what_the_tables_say(dump: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large pages and small ones, the first and last bytes in any order, twice; of some is forgotten in between."""
    memory = dump.image.kernel.memory
    monkeypatch.setattr("kvmd.images.linux.memory._PLACES", 40)
    mapped: dict[int, list[int]] = {}
    for start, size, frame in islice(memory.leaves(memory.tables.paging.bottom), 200_000):
        if frame is not None and len(mapped.setdefault(size, [])) < 30:
            mapped[size] += [start, start + size // 2, start + size - memory._page, start + size - 1]
    assert len(mapped) > 1
    addresses = [address for of_size in mapped.values() for address in of_size] * 2
    random.Random(7).shuffle(addresses)
    for address in addresses:
        assert memory._place(address) == memory.translate(address).physical
    assert memory._areas
    assert memory._places


@pytest.mark.parametrize("address", [0, 0x1000, 0x7FFF_0000_0000, 0x8000_0000_0000, 0xFF00_0000_0000_0000 - 8])
def test_nothing_is_mapped_there(dump: Any, address: int) -> None:
    e = fails(dump.image, address, 8)
    assert e.reason is Reason.NOT_MAPPED
    assert (e.address, e.metadata["readable"]) == (address, "0")


def test_the_address_space_ends(dump: Any) -> None:
    assert fails(dump.image, 2**64 - 8, 16).reason is Reason.NOT_MAPPED
    assert fails(dump.image, 2**64 - 1, 1).reason is Reason.NOT_MAPPED
    assert fails(dump.image, 2**64 - 8, 16, PHYSICAL).reason is Reason.BEYOND_DUMP


@pytest.mark.parametrize(("address", "length"), [(-1, 1), (2**64, 1), (0, -1), (0, CHUNK + 1)])
def test_senseless_reads_are_refused(qemu: Any, address: int, length: int) -> None:
    assert fails(qemu.image, address, length).reason is Reason.BAD_ARGUMENT
    assert fails(qemu.image, address, length, PHYSICAL).reason is Reason.BAD_ARGUMENT


def test_an_unknown_address_space_is_refused(qemu: Any) -> None:
    assert fails(qemu.image, 0, 1, 9).reason is Reason.BAD_ARGUMENT


@pytest.mark.parametrize("address", [1 << 40, 1 << 51, 1 << 60])
def test_no_ram_there(dump: Any, address: int) -> None:
    assert fails(dump.image, address, 8, PHYSICAL).reason is Reason.BEYOND_DUMP


def test_the_hole_below_4_gib_is_no_ram(from_bytes: Any) -> None:
    image = from_bytes(fixture("hole/vmcore.kdump").path.read_bytes())
    assert fails(image, 0xB000_0000, 8, PHYSICAL).reason is Reason.BEYOND_DUMP
    assert len(image.read(0x1_0000_0000, 8, PHYSICAL)) == 8


def test_excluded_pages_are_no_zeroes(dump: Any) -> None:
    page = trouble(dump.image, Reason.EXCLUDED)
    e = fails(dump.image, page + 8, 16, PHYSICAL)
    assert (e.reason, e.address, e.metadata["readable"]) == (Reason.EXCLUDED, page + 8, "0")


def test_a_fault_says_how_far_it_could_read(dump: Any) -> None:
    layout = dump.image.kernel.dump.layout
    pages = range(1 << 20, 64 << 20, PAGE)
    page = next(p for p in pages if not layout.trouble(p) and layout.trouble(p + PAGE) is Reason.EXCLUDED)
    e = fails(dump.image, page + 100, 2 * PAGE, PHYSICAL)
    assert (e.reason, e.address) == (Reason.EXCLUDED, page + PAGE)
    assert int(e.metadata["readable"]) == PAGE - 100
    assert len(dump.image.read(page + 100, PAGE - 100, PHYSICAL)) == PAGE - 100


def test_a_virtual_fault_names_the_virtual_address(dump: Any) -> None:
    base = direct_map(dump)
    page = trouble(dump.image, Reason.EXCLUDED)
    e = fails(dump.image, base + page, 8)
    assert (e.reason, e.address) == (Reason.EXCLUDED, base + page)


def direct_map(dump: Any) -> int:
    raw: bytes = dump.image.read(dump.truth["kallsyms"]["page_offset_base"], 8, KERNEL)
    base: int = struct.unpack("<Q", raw)[0]
    return base


def test_every_page_is_whole_or_a_typed_error(qemu: Any) -> None:
    layout = qemu.image.kernel.dump.layout
    for page in range(0, 48 << 20, PAGE * 7):
        reason = layout.trouble(page)
        if reason is None:
            assert len(qemu.image.read(page, PAGE, PHYSICAL)) == PAGE
        else:
            assert fails(qemu.image, page, PAGE, PHYSICAL).reason is reason


def mm_root(dump: Any, pid: int) -> int:
    processes = dump.image._processes
    pgd: int = processes._mm(processes.memory(pid))["pgd"]
    return pgd


def test_user_pages_lie_where_the_guest_said(dump: Any) -> None:
    memory: Memory = dump.image.kernel.memory
    assert memory.tables is not None
    seen = 0
    for page in dump.truth["pages"]:
        root = memory.tables.translate(memory.root, mm_root(dump, page["pid"])).physical
        if page["present"] and page["paddr"]:
            assert memory.tables.translate(root, page["vaddr"]).physical == page["paddr"]
            seen += 1
        elif page["swapped"]:
            with pytest.raises(KvmError) as caught:
                memory.tables.translate(root, page["vaddr"])
            assert caught.value.reason is Reason.NOT_PRESENT
            assert int(caught.value.metadata["entry"], 16)
            seen += 1
    assert seen >= 39


def test_a_page_that_does_not_decompress_is_corrupt(from_bytes: Any) -> None:
    path, truth = fixture("micro/zlib")
    banner = truth["kallsyms"]["linux_banner"]
    whole = from_bytes(path.read_bytes())
    page = whole.kernel.memory.tables.translate(whole.kernel.memory.root, banner).physical & -PAGE
    offset, size = whole.kernel.dump.layout._descriptor(page // PAGE)
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = b"\xff" * size
    damaged = from_bytes(bytes(data))
    e = fails(damaged, page, PAGE, PHYSICAL)
    assert (e.reason, e.address) == (Reason.CORRUPT_PAGE, page)
    assert whole.read(page, PAGE, PHYSICAL) != b"\0" * PAGE


class Ram:
    """Page tables made by hand: physical address to 8-byte word."""

    def __init__(self, words: dict[int, int]) -> None:
        self.words = words

    def read(self, address: int, length: int) -> bytes:
        if address not in self.words:
            raise FaultError("test", address)
        return self.words[address].to_bytes(length, "little")


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [(0, Reason.NOT_MAPPED), (0x1234_5600, Reason.NOT_PRESENT), (2, Reason.NOT_PRESENT)],
)
def test_entries_that_are_not_present(leaf: int, reason: Reason) -> None:
    tables = PageTables(Ram({0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: leaf}).read, X86Paging(4))
    with pytest.raises(KvmError) as caught:
        tables.translate(0x1000, 0)
    assert caught.value.reason is reason


def test_leaves_of_every_size() -> None:
    words = {0x1000: 0x2003, 0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x8000_0000_0005_0003}
    assert PageTables(Ram(words).read, X86Paging(4)).translate(0x1000, 0x123).physical == 0x5_0123
    huge = words | {0x3000: 0x60_0083}
    assert PageTables(Ram(huge).read, X86Paging(4)).translate(0x1000, 0x1234).length == (2 << 20) - 0x1234
    giant = words | {0x2000: 0x8000_0083}
    assert PageTables(Ram(giant).read, X86Paging(4)).translate(0x1000, 0x1234).physical == 0x8000_1234
    protnone = words | {0x4000: 0x5_0102}
    assert PageTables(Ram(protnone).read, X86Paging(4, inverted=False)).translate(0x1000, 8).physical == 0x5_0008
    inverted = words | {0x4000: ~0x5_0000 & (1 << 52) - 0x1000 | 0x102}  # as Linux writes it since L1TF
    assert PageTables(Ram(inverted).read, X86Paging(4)).translate(0x1000, 8).physical == 0x5_0008
    split = words | {0x3000: ~0x60_0000 & (1 << 52) - (2 << 20) | 0x80}  # a huge page that is being split
    assert PageTables(Ram(split).read, X86Paging(4)).translate(0x1000, 0x1234).physical == 0x60_1234
    encrypted = words | {0x4000: (1 << 47) | 0x5_0003}
    assert PageTables(Ram(encrypted).read, X86Paging(4, 1 << 47)).translate(0x1000, 8).physical == 0x5_0008


@pytest.mark.parametrize(("levels", "address"), [(4, 1 << 47), (4, 2**64 - 2**48), (5, 1 << 56)])
def test_addresses_that_are_not_canonical(levels: int, address: int) -> None:
    with pytest.raises(KvmError, match="canonical"):
        PageTables(Ram({}).read, X86Paging(levels)).translate(0, address)
