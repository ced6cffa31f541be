"""FreeBSD's dumps: minidumps of amd64 (M1 to M3) and arm64 (M4), and full dumps (E1)."""

from __future__ import annotations

import itertools
import os
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import bsd
import bsd_minidump
from bsd import PAGE, opened, pattern
from bsd_minidump import M_BASE, M_DATA, M_GONE, M_LARGE
from kvmd.errors import KvmError, Reason
from kvmd.v1 import memory_pb2, process_pb2

KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
DIRECT = 0xFFFFF80000000000
versions = pytest.mark.parametrize("version", [1, 2, 3])


def failure(image: Any, address: int, length: int = 8, space: int = KERNEL) -> KvmError:
    with pytest.raises(KvmError) as caught:
        image.read(address, length, space)
    return caught.value


def refusal(data: bytes, execfile: bytes | None = None) -> KvmError:
    with pytest.raises(KvmError) as caught, opened(data, execfile):
        pass
    return caught.value


@versions
def test_the_kernels_map(version: int) -> None:
    prefix = "_amd64_minidump_vatop_v1: " if version == 1 else "_amd64_minidump_vatop: "
    with opened(bsd_minidump.minidump(version).file()) as image:
        assert image.read(M_BASE, PAGE, KERNEL) == pattern(5)
        assert image.read(M_BASE + bsd.LARGE + 8, 100, KERNEL) == pattern(6)[8:108]
        gone = failure(image, M_BASE + PAGE)
        assert gone.reason is Reason.EXCLUDED
        assert gone.metadata["translator"] == f"{prefix}physical address {M_GONE:#x} not in minidump"
        unmapped = failure(image, M_BASE + 2 * PAGE)
        assert unmapped.reason is Reason.NOT_MAPPED
        assert unmapped.metadata["translator"] == f"{prefix}pte not valid"
        assert unmapped.metadata["dialect"] == "freebsd"
        below = failure(image, 0x1234)
        assert below.metadata["translator"] == f"{prefix}virtual address 0x1234 not minidumped"
        beyond = failure(image, M_BASE + (1024 * PAGE if version == 1 else 512 * bsd.LARGE))
        assert beyond.reason is Reason.NOT_MAPPED
        assert "translator" not in beyond.metadata


@pytest.mark.parametrize("version", [2, 3])
def test_page_tables_and_large_pages(version: int) -> None:
    made = bsd_minidump.minidump(version)
    with opened(made.file()) as image:
        assert image.read(M_BASE + bsd.LARGE, 2 * PAGE, KERNEL) == pattern(6) + pattern(7)
        fault = failure(image, M_BASE + bsd.LARGE, 3 * PAGE)
        assert (fault.reason, fault.metadata["readable"]) == (Reason.EXCLUDED, str(2 * PAGE))
        absent = failure(image, M_BASE + 2 * bsd.LARGE)
        assert absent.metadata["translator"] == "_amd64_minidump_vatop: pde not valid"
        table = failure(image, M_BASE + 3 * bsd.LARGE)
        assert table.metadata["translator"] == f"cannot find page table entry for {0xA000}"
    whole = made.file()
    with opened(whole[: len(whole) - 4 * PAGE]) as image:  # its pages are cut off
        cut = failure(image, M_BASE)
        assert cut.reason is Reason.BEYOND_DUMP
        assert cut.metadata["translator"] == f"cannot read page table entry for {bsd_minidump.M_TABLE}"
        assert failure(image, DIRECT + M_DATA).reason is Reason.SHORT_FILE


@versions
def test_the_direct_map_and_physical_memory(version: int) -> None:
    with opened(bsd_minidump.minidump(version).file()) as image:
        assert image.read(DIRECT + M_DATA + 16, 64, KERNEL) == pattern(5)[16:80]
        assert image.read(M_LARGE, 2 * PAGE, PHYSICAL) == pattern(6) + pattern(7)
        text = failure(image, DIRECT + M_GONE + 5).metadata["translator"]
        assert text.endswith(f"direct map address {DIRECT + M_GONE + 5:#x} not in minidump")
        assert failure(image, M_GONE, 8, PHYSICAL).reason is Reason.EXCLUDED
        assert failure(image, 1 << 40, 8, PHYSICAL).reason is Reason.BEYOND_DUMP
        assert failure(image, DIRECT + (1 << 30)).reason is Reason.NOT_MAPPED


@versions
def test_the_pages_of_a_walk(version: int) -> None:
    with opened(bsd_minidump.minidump(version).file()) as image:
        pages, error = [], None
        try:
            pages.extend(image.pages(0))
        except KvmError as e:
            error = e
        addresses = [page.virtual_address for page in pages]
        assert addresses == sorted(addresses)
        direct = {page.physical_address for page in pages if page.virtual_address < M_BASE}
        assert direct == bsd_minidump.minidump(version).pages
        mapped = {page.virtual_address: page for page in pages if page.virtual_address >= M_BASE}
        assert set(mapped) == {M_BASE, M_BASE + PAGE, M_BASE + bsd.LARGE}
        assert mapped[M_BASE].direct_address == DIRECT + M_DATA
        assert not mapped[M_BASE + PAGE].present
        assert not mapped[M_BASE + PAGE].HasField("direct_address")
        if version > 1:
            assert mapped[M_BASE].protection == 7
            assert (mapped[M_BASE + bsd.LARGE].protection, mapped[M_BASE + bsd.LARGE].length) == (1, bsd.LARGE)
            assert error is not None
            assert (error.reason, error.metadata["skipped"]) == (Reason.EXCLUDED, "1")
            assert error.address == M_BASE + 3 * bsd.LARGE
        later = image.pages(M_BASE + PAGE)
        assert next(later).virtual_address == M_BASE + PAGE
        assert next(image.pages(DIRECT + M_DATA + 1)).physical_address == M_DATA


def test_ranges_number_their_own_pages_alone() -> None:
    """Q26: FreeBSD's libkvm takes a page of the gap for one of the range before."""
    made = bsd_minidump.minidump(3)
    made.ranges = [(0x3000, 0x6000), (0x3FF800, 0x402000)]
    ids = made.ids()
    assert ids == {0x3000: 0, 0x5000: 2, 0x400000: 4, 0x401000: 5}
    with opened(made.file()) as image:
        assert image.read(M_BASE, PAGE, KERNEL) == pattern(5)
        assert image.read(M_LARGE, 2 * PAGE, PHYSICAL) == pattern(6) + pattern(7)
        for gap in (0x2000, 0x6000, 0x7000, 0x3FE000, 0x402000):
            assert failure(image, gap, 8, PHYSICAL).reason is Reason.BEYOND_DUMP
        assert failure(image, 0x4000, 8, PHYSICAL).reason is Reason.EXCLUDED
        assert failure(image, 0x3FF800, 8, PHYSICAL).reason is Reason.EXCLUDED
        found = [page.physical_address for page in itertools.islice(image.pages(DIRECT), 4)]
        assert found == sorted(ids)


def test_ranges_that_share_a_page() -> None:
    """Each has an id of its own for it; the first is the one that the writer sets."""
    made = bsd_minidump.minidump(3)
    made.ranges = [(0, 0x3800), (0x3800, 0x6000), (0x400000, 0x402000)]
    made.pages = {M_DATA, M_LARGE}
    made.entries = {1: M_LARGE | 1 | 0x80}
    assert made.ids() == {M_DATA: 6, M_LARGE: 7}
    with opened(made.file()) as image:
        assert image.read(M_DATA, PAGE, PHYSICAL) == pattern(5)
        assert image.read(M_BASE + bsd.LARGE, PAGE, KERNEL) == pattern(6)


def test_a_bitmap_without_a_page() -> None:
    """Q26: FreeBSD's libkvm can't open it."""
    made = bsd_minidump.minidump(2)
    made.pages = set()
    with opened(made.file()) as image:
        assert failure(image, DIRECT).reason is Reason.EXCLUDED
        assert failure(image, M_BASE).reason is Reason.EXCLUDED


@pytest.mark.parametrize("version", [0, 4, 0xFFFFFFFF])
def test_versions(version: int) -> None:
    data = bytearray(bsd_minidump.minidump(3).file())
    struct.pack_into("<I", data, 24, version)
    assert refusal(bytes(data)).text == f"wrong minidump version. expected 3 got {version}"
    data = bytearray(bsd_minidump.arm64_minidump())
    struct.pack_into("<I", data, 24, version)
    assert refusal(bytes(data)).text == f"wrong minidump version. Expected 3 got {version}"


@pytest.mark.parametrize("magic", [b"minidump FreeBSD/i386", b"minidump DFlyBSD/x86-64", b"minidump ", b"minidump X"])
def test_another_platforms(magic: bytes) -> None:
    data = magic.ljust(24, b"\0") + bsd_minidump.minidump(3).file()[24:]
    failed = refusal(data)
    assert (failed.reason, failed.text) == (Reason.UNSUPPORTED_FORMAT, "not a minidump for this platform")


def test_files_that_end_early() -> None:
    made = bsd_minidump.minidump(3)
    parts = made.parts()
    starts = [sum(map(len, parts[:number])) for number in range(6)]
    whole = made.file()
    sizes = struct.unpack_from("<III", whole, 28)
    wanted = {
        60: "cannot read dump header",
        starts[2] + 8: "cannot read 32 bytes for dump_avail",
        starts[3] + 8: f"cannot read {sizes[1]} bytes for bitmap",
        starts[4] + 100: f"cannot read {sizes[2]} bytes from offset {starts[4]} for page map",
    }
    for end, text in wanted.items():
        failed = refusal(whole[:end])
        assert (failed.reason, failed.text) == (Reason.TRUNCATED_IMAGE, text)


def test_tables_of_ranges_that_make_no_sense() -> None:
    for ranges in ([(0x5000, 0x3000)], [(0, 0x5000), (0x4000, 0x8000)], [(0x8000, 0x9000), (0, 0x1000)]):
        made = bsd_minidump.minidump(3)
        data = made.file()
        made.ranges, made.pages = ranges, set()
        data = b"".join(made.parts())
        assert refusal(data).reason is Reason.CORRUPT_IMAGE


def hostile(path: Path, *, bitmap: int = 0, pmap: int = 0, avail: int = 0) -> str:
    """A sparse file whose header asks for much; only zeroes follow."""
    head = b"minidump FreeBSD/amd64".ljust(24, b"\0")
    head += struct.pack("<IIIIQQQI", 3, 0, bitmap, pmap, M_BASE, DIRECT, M_BASE, avail)
    path.write_bytes(head)
    os.truncate(path, 16 << 30)
    return str(path)


def test_sizes_that_make_no_sense_cost_no_memory_and_little_time(tmp_path: Path) -> None:
    began = time.monotonic()
    tracemalloc.start()
    try:
        with opened(hostile(tmp_path / "core", bitmap=128 << 20, pmap=64 << 20)) as image:
            assert failure(image, DIRECT).reason is Reason.EXCLUDED
            assert failure(image, (1 << 42) - PAGE, 8, PHYSICAL).reason is Reason.EXCLUDED
            assert failure(image, M_BASE).reason is Reason.NOT_MAPPED
            assert list(image.pages(0)) == []
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    for sizes in ({"bitmap": (1 << 30) + 8}, {"pmap": (256 << 20) + 8}, {"bitmap": 0xFFFFFFFF, "pmap": 0xFFFFFFFF}):
        with pytest.raises(KvmError, match="make no sense"), opened(hostile(tmp_path / "core", **sizes)):
            pass
    with pytest.raises(KvmError, match="dump_avail"), opened(hostile(tmp_path / "core", avail=0xFFFFFFF0)):
        pass
    assert time.monotonic() - began < 60


def test_page_maps_that_map_nothing_end() -> None:
    made = bsd_minidump.minidump(2)
    made.entries = dict.fromkeys(range(1 << 18, 1 << 18 | 2), 2) | dict.fromkeys(range((1 << 18) + 1), M_DATA | 2)
    made.map_entries = (1 << 18) + 2
    made.kernbase = DIRECT + (1 << 40)
    with opened(made.file()) as image, pytest.raises(KvmError) as caught:
        list(image.pages(made.kernbase))
    assert caught.value.reason is Reason.CORRUPT_DATA


@pytest.mark.parametrize("page_size", [4096, 16384])
def test_m4_reads_arm64(page_size: int) -> None:
    kernbase, direct, physical = 0xFFFF000000000000, 0xFFFFA00000000000, 0x40000000
    prefix = "_aarch64_minidump_vatop: "
    data = bsd_minidump.arm64_minidump(3, page_size)
    with opened(data) as image:
        assert image.info().page_size == page_size
        assert image.read(kernbase, page_size, KERNEL) == pattern(5, page_size)
        assert image.read(direct + page_size + 8, 8, KERNEL) == pattern(5)[8:16]
        assert image.read(physical + page_size, 8, PHYSICAL) == pattern(5)[:8]
        texts = {
            kernbase + page_size: f"physical address {physical + 2 * page_size:#x} not in minidump",
            kernbase + 2 * page_size: "pde not valid",
            direct + 2 * page_size: f"direct map address {direct + 2 * page_size:#x} not in minidump",
            5: "virtual address 0x5 not minidumped",
        }
        for address, text in texts.items():
            assert failure(image, address).metadata["translator"] == prefix + text
        assert "translator" not in failure(image, kernbase + 4 * page_size).metadata
        pages = {page.virtual_address: page for page in image.pages(0)}
        assert set(pages) == {direct + page_size, *(kernbase + index * page_size for index in (0, 1, 3))}
        assert pages[kernbase].direct_address == direct + page_size  # Q27: without dmapphys
        assert [pages[kernbase + index * page_size].protection for index in (0, 1, 3)] == [7, 5, 3]
        assert image.foreign() is (os.uname().machine != "aarch64")


def test_m4_of_other_versions() -> None:
    for version in (1, 2):
        with opened(bsd_minidump.arm64_minidump(version, PAGE, 0 if version == 1 else 0x40000000)) as image:
            assert image.read(0xFFFF000000000000, 8, KERNEL) == pattern(5)[:8]
    data = bytearray(bsd_minidump.arm64_minidump())
    data[76] = 3
    assert refusal(bytes(data)).text == "unknown page size flag 3"


def test_what_freebsds_libkvm_refuses() -> None:
    user, calls = memory_pb2.ADDRESS_SPACE_USER, "cannot read user space from dead kernel"
    with opened(bsd_minidump.arm64_minidump()) as image:
        if image.foreign():
            texts = {
                "cannot read procs from non-native core": lambda: image.processes(process_pb2.GetProcsRequest()),
                "cannot read loadavg from non-native core": image.load_average,
                "cannot read cp_time from non-native core": image.cpu_times,
                "cannot read swapinfo from non-native core": image.swap_areas,
            }
            for text, call in texts.items():
                with pytest.raises(KvmError) as caught:
                    call()
                assert (caught.value.reason, caught.value.text) == (Reason.UNSUPPORTED, text)
    with opened(bsd_minidump.minidump(3).file()) as image:
        assert failure(image, 0, 8, user).text == calls
        with pytest.raises(KvmError, match=calls):
            image.strings(1, 1, 0)
        with pytest.raises(KvmError, match="of a FreeBSD dump can't be read"):
            image.processes(process_pb2.GetProcsRequest())
        with pytest.raises(KvmError) as caught:
            image.dump_header(0)
        assert caught.value.reason is Reason.UNSUPPORTED


def test_load_averages_without_fscale() -> None:
    made = bsd_minidump.minidump(3)
    made.memory.put(M_DATA, struct.pack("<IIIxxxxq", 2048, 1024, 512, 2048))
    with opened(made.file(), bsd.kernel({"averunnable": M_BASE})) as image:
        assert image.load_average() == [1.0, 0.5, 0.25]
    made.memory.put(M_DATA, bytes(24))
    with opened(made.file(), bsd.kernel({"averunnable": M_BASE})) as image, pytest.raises(KvmError) as caught:
        image.load_average()
    assert caught.value.reason is Reason.CORRUPT_DATA
    with opened(made.file(), bsd.kernel({"a": 1})) as image, pytest.raises(KvmError, match="averunnable"):
        image.load_average()


def test_e1_reads_a_full_dump() -> None:
    with opened(bsd.e1(), bsd.kernel(bsd.E1_SYMBOLS)) as image:
        assert image.info().format == "freebsd-elf"
        assert image.read(bsd.TEXT_BASE, 2 * PAGE, KERNEL) == pattern(5) + pattern(6)
        assert image.read(0x40000, 8, PHYSICAL) == pattern(6)[:8]
        texts = {
            bsd.TEXT_BASE + 2 * PAGE: (Reason.BEYOND_DUMP, "address not in dump"),
            bsd.TEXT_BASE + 3 * PAGE: (Reason.NOT_MAPPED, "pte not valid"),
            bsd.LARGE_VIRTUAL + 0x10000: (Reason.BEYOND_DUMP, "2MB page address not in dump"),
            0xFFFFFFFF80000000 + 7 * bsd.LARGE: (Reason.NOT_MAPPED, "pde not valid"),
            0xFFFFFF8000000000: (Reason.NOT_MAPPED, "pdpe not valid"),
            0x10: (Reason.NOT_MAPPED, "pml4e not valid"),
        }
        for address, (reason, text) in texts.items():
            fault = failure(image, address)
            assert (fault.reason, fault.metadata["translator"]) == (reason, f"_amd64_vatop: {text}")
        # Q28: a page of 2 MiB ends with the chunk that holds its start.
        assert failure(image, bsd.LARGE_VIRTUAL + 0xF000, 2 * PAGE).metadata["readable"] == str(PAGE)
        mapped = {page.virtual_address: page.present for page in image.pages(0)}
        assert mapped == {
            bsd.TEXT_BASE: True,
            bsd.TEXT_BASE + PAGE: True,
            bsd.TEXT_BASE + 2 * PAGE: False,
            bsd.LARGE_VIRTUAL: True,
        }


def test_e1_needs_two_symbols_and_what_they_lead_to() -> None:
    for symbols, text in (
        (None, "bad namelist - no kernbase"),
        ({"KPML4phys": 1}, "bad namelist - no kernbase"),
        ({"kernbase": 1}, "bad namelist - no KPML4phys"),
        ({"kernbase": 0, "KPML4phys": 1 << 40}, "cannot read KPML4phys"),
        ({"kernbase": 0, "KPML4phys": bsd.DATA_PAGE + 8}, "cannot read KPML4phys"),
    ):
        assert refusal(bsd.e1(), bsd.kernel(symbols) if symbols else None).text == text


def test_e1_broken() -> None:
    kernel = bsd.kernel(bsd.E1_SYMBOLS)
    other = bsd.elf(4, bsd.AARCH64, segments=[(0, PAGE, bytes(PAGE))], osabi=255)
    assert refusal(other, None).reason is Reason.UNSUPPORTED_FORMAT
    overlapping = [(0, 2 * PAGE, bytes(2 * PAGE)), (PAGE, PAGE, bytes(PAGE))]
    data = bsd.elf(4, bsd.X86_64, segments=overlapping, osabi=255)
    assert refusal(data, kernel).reason is Reason.CORRUPT_IMAGE
    assert refusal(bsd.e1()[:100], kernel).reason is Reason.TRUNCATED_IMAGE
    short = bsd.elf(4, bsd.X86_64, segments=[(0, 16 * PAGE, bytes(PAGE))], osabi=255)  # memory that no file holds
    assert refusal(short, kernel).text == "cannot read KPML4phys"
