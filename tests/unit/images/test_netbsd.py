"""NetBSD's crash dumps: K1 to K7, and what they read as."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest

import bsd
from bsd import PAGE, opened, pattern
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.bsd import kcore
from kvmd.images.registry import open_image
from kvmd.v1 import memory_pb2, process_pb2

KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
NETBSD = bsd.kernel({"averunnable": bsd.TEXT_BASE}, netbsd=True)


def failure(image: Any, address: int, length: int = 8, space: int = KERNEL) -> KvmError:
    with pytest.raises(KvmError) as caught:
        image.read(address, length, space)
    return caught.value


def test_k1_has_the_bytes_that_the_format_asks_for() -> None:
    data = bsd.k1().file()
    assert data[:4] == b"\0\x9d\x8f\xca"
    assert data[4:12] == struct.pack("<HHI", 16, 8, 2)
    assert data[16:24] == b"\x04\0\x8f\xac" + struct.pack("<I", 504)
    assert struct.unpack_from("<QQQQ", data, 24) == (0x1000, 1, 0, 0x10000)
    assert data[528:532] == b"\x08\0\x8f\xac"
    assert len(data) == 536 + 0x10000


def test_k1_reads() -> None:
    with opened(bsd.k1().file()) as image:
        assert image.read(bsd.TEXT_BASE, PAGE, KERNEL) == pattern(5)
        assert image.read(bsd.TEXT_BASE + 100, 2 * PAGE - 200, KERNEL) == (pattern(5) + pattern(6))[100:-100]
        assert image.read(bsd.DATA_PAGE + 8, 16, PHYSICAL) == pattern(5)[8:24]
        assert image.read(bsd.TEXT_BASE + 2 * PAGE, 0, KERNEL) == b""
        fault = failure(image, bsd.TEXT_BASE + 2 * PAGE - 4)
        assert (fault.reason, fault.address, fault.metadata["readable"]) == (
            *(Reason.NOT_MAPPED, bsd.TEXT_BASE + 2 * PAGE),
            "4",
        )
        assert fault.text == f"_kvm_kvatop({bsd.TEXT_BASE + 2 * PAGE:x})"


def test_each_levels_text() -> None:
    wanted = {
        0x10: "invalid translation (invalid level 4 PDE)",
        0xFFFFFF8000000000: "invalid translation (invalid level 3 PDE)",
        0xFFFFFFFF80000000 + (5 << 21): "invalid translation (invalid level 2 PDE)",
        bsd.TEXT_BASE + 5 * PAGE: "invalid translation (invalid PTE)",
    }
    with opened(bsd.k1().file()) as image:
        for address, text in wanted.items():
            assert failure(image, address).metadata["translator"] == text
            assert failure(image, address).metadata["dialect"] == "netbsd"


@pytest.mark.parametrize(("table", "text"), [(0x1000, 4), (0x2000, 3), (0x3000, 2), (0x4000, 1)])
def test_a_table_that_is_not_in_the_dump(table: int, text: int) -> None:
    made = bsd.k1()
    runs = [(0, table), (table + PAGE, 0x10000 - table - PAGE)]
    made.cpu = struct.pack("<QQ4Q", 0x1000, 2, *itertools.chain(*runs)).ljust(504, b"\0")
    made.memory = made.memory[:table] + made.memory[table + PAGE :]
    with opened(made.file()) as image:
        fault = failure(image, bsd.TEXT_BASE)
        assert fault.reason is Reason.BEYOND_DUMP
        name = "PTE" if text == 1 else f"PT level {text} entry"
        assert fault.metadata["translator"] == f"could not read {name}: Invalid argument"
        with pytest.raises(KvmError) as caught:
            list(image.pages(0))
        assert caught.value.metadata["skipped"] == "1"


def test_k2_reads_large_pages_whole() -> None:
    with opened(bsd.k2().file()) as image:
        assert image.read(bsd.LARGE_VIRTUAL, 3 * PAGE, KERNEL) == pattern(100) + pattern(101) + pattern(102)
        assert image.read(bsd.LARGE_VIRTUAL + 511 * PAGE, PAGE, KERNEL) == pattern(611)
        assert image.read(bsd.HUGE_VIRTUAL + bsd.LARGE + PAGE, PAGE, KERNEL) == pattern(101)
        assert failure(image, bsd.LARGE_VIRTUAL + bsd.LARGE - 8, 16).address == bsd.LARGE_VIRTUAL + bsd.LARGE
        assert failure(image, bsd.HUGE_VIRTUAL + 2 * bsd.LARGE).reason is Reason.BEYOND_DUMP
        sizes = {page.virtual_address: page.length for page in image.pages(0)}
        assert sizes == {bsd.HUGE_VIRTUAL: bsd.HUGE, bsd.LARGE_VIRTUAL: bsd.LARGE}


def test_k3_has_a_hole_where_it_has_one() -> None:
    with opened(bsd.k3().file()) as image:
        before = bsd.LARGE_VIRTUAL + 0x7000
        assert image.read(before, PAGE, KERNEL) == pattern(0x7000)
        fault = failure(image, before, 2 * PAGE)
        assert (fault.reason, fault.address) == (Reason.BEYOND_DUMP, bsd.LARGE_VIRTUAL + bsd.HOLE)
        assert fault.metadata["readable"] == str(PAGE)
        assert failure(image, bsd.TEXT_BASE).reason is Reason.BEYOND_DUMP
        assert image.read(bsd.LARGE_VIRTUAL + bsd.AFTER_HOLE, PAGE, KERNEL) == pattern(bsd.AFTER_HOLE)
        assert failure(image, bsd.HOLE, 8, PHYSICAL).reason is Reason.BEYOND_DUMP
        assert image.read(bsd.AFTER_HOLE, 8, PHYSICAL) == pattern(bsd.AFTER_HOLE)[:8]


def test_k4_has_longer_cpu_data() -> None:
    data = bsd.k4().file()
    assert struct.unpack_from("<I", data, 20) == (1016,)
    with opened(data) as image:
        assert image.read(bsd.TEXT_BASE, PAGE, KERNEL) == pattern(5)
        assert len(image.dump_header(0).header) == 1048


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(("shift", "bits"), [(12, 48), (12, 39), (14, 48), (14, 47), (16, 48), (16, 42)])
def test_k5_reads_aarch64(shift: int, bits: int, counted: bool) -> None:
    made = bsd.k5(shift, bits, counted=counted)
    data = made.file()
    assert data[:4] == b"\0\xb7\x8f\xca"
    assert data[528:532] == b"\x08\0\x8f\xac"
    with opened(data) as image:
        start = (1 << 64) - (1 << bits) + (bsd.ARM_TEXT & (1 << bits) - 1)
        size = min(1 << shift, 8 * PAGE)
        assert image.read(start + 16, size - 16, KERNEL) == pattern(5, size)[16:]
        assert image.info().page_size == 1 << shift
        assert image.info().machine == "aarch64"
        assert failure(image, 0x1000).metadata["translator"] == "invalid kernel virtual address"
        missing = failure(image, start + (1 << shift))
        assert missing.metadata["translator"] == "invalid translation (invalid pte)"
        with pytest.raises(KvmError) as caught:
            image.pages(0)
        assert caught.value.reason is Reason.UNSUPPORTED
        assert image.dump_header(len(made.memory)).header == data[:544]


def test_an_aarch64_block_and_a_tcr_that_makes_no_sense() -> None:
    memory = bsd.Memory()
    tables = bsd.Arm(memory)
    tables.map(bsd.ARM_TEXT, 0x40000000, level=2)
    memory.put(0x40000000 + PAGE, pattern(9))
    runs = [(0x10000, 0x20000), (0x40000000, 0x4000)]
    cpu = struct.pack("<QQ4Q", tables.tcr, tables.root, *itertools.chain(*runs)).ljust(496, b"\0")
    made = bsd.Kcore(cpu, b"".join(memory.run(*run) for run in runs), 183, 16)
    with opened(made.file()) as image:
        assert image.read(bsd.ARM_TEXT + PAGE, PAGE, KERNEL) == pattern(9)
        assert failure(image, bsd.ARM_TEXT + 0x4000).reason is Reason.BEYOND_DUMP
    for tcr in (0, 2 << 30 | 63 << 16, 2 << 30):
        made.cpu = struct.pack("<Q", tcr) + cpu[8:]
        with opened(made.file()) as image:
            assert failure(image, bsd.ARM_TEXT).reason is Reason.NOT_MAPPED
            assert "translator" not in failure(image, bsd.ARM_TEXT).metadata


@pytest.mark.parametrize("before", [0, 512, 4096 + 7])
def test_k6_is_found_where_it_is(before: int) -> None:
    data = b"\xa5" * before + bsd.k1().device()
    with opened(data, NETBSD) as image:
        assert image.info().format == "netbsd-dump-device"
        assert failure(image, bsd.TEXT_BASE).reason is Reason.NO_DUMP_HEADER
        assert failure(image, 0, 8, PHYSICAL).text == "no valid dump header"
        with pytest.raises(KvmError):
            image.pages(0)
        assert image.symbols(["averunnable"])[0].found
    with opened(data, dump_offset=before) as image:
        assert image.read(bsd.TEXT_BASE, PAGE, KERNEL) == pattern(5)
        header = image.dump_header(0x10000)
        assert header.device_bytes == 512
        assert header.header == bsd.k1().file()[:536]
        assert image.info().format == "netbsd-kcore"


def test_k6_of_aarch64() -> None:
    made = bsd.k5()
    with opened(made.device(), dump_offset=0) as image:
        assert image.read(bsd.ARM_TEXT, 8, KERNEL) == pattern(5)[:8]
        assert image.dump_header(len(made.memory)).header == made.file()[:544]
        assert image.dump_header(1 << 32 | 5).header[-12:-8] == struct.pack("<I", 5)


def test_where_no_dump_is() -> None:
    whole = bsd.k1().device()
    cases = {
        (whole, 8): (Reason.UNSUPPORTED_FORMAT, "invalid magic in cpu_hdr"),
        (bsd.k1().file(), 0): (Reason.UNSUPPORTED_FORMAT, "invalid magic in cpu_hdr"),
        (whole, len(whole) - 4): (
            Reason.TRUNCATED_IMAGE,
            f"read 8 bytes at offset {len(whole) - 4:x} for cpu_hdr failed: Invalid argument",
        ),
        (whole, 1 << 63): (
            Reason.TRUNCATED_IMAGE,
            f"read 8 bytes at offset {1 << 63:x} for cpu_hdr failed: Invalid argument",
        ),
        (whole[:100], 0): (Reason.TRUNCATED_IMAGE, "size 92 != cpu_hdr.csize 504"),
    }
    for (data, offset), (reason, text) in cases.items():
        with pytest.raises(KvmError) as caught, opened(data, NETBSD, offset):
            pass
        assert (caught.value.reason, caught.value.text) == (reason, text)
    huge = bsd.k1()
    huge.cpu_size = 0xFFFFFFF0
    with pytest.raises(KvmError, match="no cpu_data"), opened(huge.device(), dump_offset=0):
        pass


@pytest.mark.parametrize("name", bsd.k7())
def test_k7_opens_for_netbsds_kernel_alone(name: str) -> None:
    data = bsd.k7()[name]
    with pytest.raises(KvmError) as caught, opened(data):
        pass
    assert caught.value.reason in (Reason.TRUNCATED_IMAGE, Reason.CORRUPT_IMAGE, Reason.UNSUPPORTED_FORMAT)
    assert caught.value.metadata["path"] == "core"
    with pytest.raises(KvmError), opened(data, bsd.kernel({"a": 1})):
        pass
    with opened(data, NETBSD) as image:
        assert failure(image, bsd.TEXT_BASE).text == "no valid dump header"
        assert image.symbols(["averunnable", "b"])[0].value == bsd.TEXT_BASE


def test_a_file_of_anything_opens_for_netbsds_kernel() -> None:
    with opened(b"this is a text file", NETBSD) as image:
        assert failure(image, 0).reason is Reason.NO_DUMP_HEADER
    for execfile in (None, bsd.kernel({"a": 1}), b"no ELF file"):
        with pytest.raises(KvmError) as caught, opened(b"this is a text file", execfile):
            pass
        assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_file_that_ends_early() -> None:
    data = bsd.k1().file()
    with opened(data[: 536 + 0x5000 + 100]) as image:
        assert image.read(bsd.TEXT_BASE, 100, KERNEL) == pattern(5)[:100]
        fault = failure(image, bsd.TEXT_BASE, 101)
        assert (fault.reason, fault.metadata["readable"]) == (Reason.SHORT_FILE, "100")
    with opened(data[: 536 + 0x3000]) as image:  # where its tables should be: no translation
        assert failure(image, bsd.TEXT_BASE).reason is Reason.BEYOND_DUMP


def test_a_table_that_points_to_itself_ends() -> None:
    memory = bsd.Memory()
    for index in range(512):
        memory.word(0x1000 + index * 8, 0x1000 | 3)
    with opened(bsd.kcore(memory, [(0, 0x3000)]).file()) as image:
        assert image.read(0xFFFFFFFF80000000, 8, KERNEL) == struct.pack("<Q", 0x1003)
        assert len(list(itertools.islice(image.pages(0), 5000))) == 5000


def test_the_ends_of_the_address_space() -> None:
    memory = bsd.Memory()
    tables = bsd.Amd64(memory)
    tables.map((1 << 64) - PAGE, 0x8000)
    memory.put(0x8000, pattern(8))
    with opened(bsd.kcore(memory, [(0, 0x10000)]).file()) as image:
        assert image.read((1 << 64) - 16, 16, KERNEL) == pattern(8)[-16:]
        fault = failure(image, (1 << 64) - 16, 17)
        assert (fault.reason, fault.metadata["readable"]) == (Reason.NOT_MAPPED, "16")
        assert failure(image, 0x10000 - 1, 2, PHYSICAL).address == 0x10000
        for address, length in ((-1, 1), (1 << 64, 1), (0, (1 << 20) + 1)):
            assert failure(image, address, length).reason is Reason.BAD_ARGUMENT
        with pytest.raises(KvmError):
            image.pages(1 << 64)


def test_names_and_what_they_tell() -> None:
    memory = bsd.Memory()
    bsd.Amd64(memory).map(bsd.TEXT_BASE, 0x8000)
    memory.put(0x8000, struct.pack("<IIIxxxxq", 2048, 4096, 1024, 7))
    memory.put(0x8040, struct.pack("<I", 2048))
    memory.put(0x8080, b"NetBSD 10.0 (GENERIC) #0\n\tbuilt\0")
    memory.put(0x8100, b"10.0\0")
    memory.put(0x8180, b"fatal page fault\0")
    memory.word(0x8200, bsd.TEXT_BASE + 0x180)
    places = {"averunnable": 0, "fscale": 0x40, "version": 0x80, "osrelease": 0x100, "panicstr": 0x200}
    names = {name: bsd.TEXT_BASE + place for name, place in places.items()}
    data = bsd.kcore(memory, [(0, 0x10000)]).file()
    with opened(data, bsd.kernel(names, more=[("main", bsd.TEXT_BASE, bsd.FUNC)], netbsd=True)) as image:
        info = image.info()
        assert (info.format, info.machine, info.symbols) == ("netbsd-kcore", "x86_64", "execfile")
        assert (info.release, info.banner) == ("10.0", "NetBSD 10.0 (GENERIC) #0")
        assert info.panic_message == "fatal page fault"
        assert image.load_average() == [1.0, 2.0, 0.5]
        assert image.kernel_name() == "kernel"
        assert [symbol.n_type for symbol in image.symbols(["main", "version", "nothing"])] == [5, 7, 0]
        assert not image.foreign()
    del names["fscale"]
    with opened(data, bsd.kernel(names, netbsd=True)) as image, pytest.raises(KvmError) as caught:
        image.load_average()
    assert caught.value.text == "_fscale: no such symbol"
    with opened(data) as image:
        assert image.info().banner == image.kernel_name() == ""
        with pytest.raises(KvmError) as caught:
            image.symbols(["version"])
        assert caught.value.reason is Reason.NO_SYMBOLS
    with opened(data, bsd.kernel(None, netbsd=True)) as image:
        with pytest.raises(KvmError) as caught:
            image.symbols(["version"])
        assert caught.value.reason is Reason.EXEC_STRIPPED
        assert image.info().banner == ""


def test_an_execfile_that_does_not_fit() -> None:
    for execfile, reason in {
        bsd.kernel({"a": 1}, bsd.AARCH64): Reason.EXEC_FOREIGN,
        bsd.kernel({"a": 1})[:100]: Reason.EXEC_NOT_ELF,
        b"text": Reason.EXEC_NOT_ELF,
    }.items():
        with pytest.raises(KvmError) as caught, opened(bsd.k1().file(), execfile):
            pass
        assert caught.value.reason is reason


def test_what_needs_the_layout_of_structures_is_refused() -> None:
    with opened(bsd.k1().file()) as image:
        calls = [
            *(lambda: image.processes(process_pb2.GetProcsRequest()), lambda: image.strings(1, 1, 0), image.log),
            *(image.cpu_times, image.cpus, image.swap_areas, lambda: image.files(0)),
            lambda: image.read(0, 1, memory_pb2.ADDRESS_SPACE_USER, 1),
        ]
        for call in calls:
            with pytest.raises(KvmError, match="of a NetBSD dump can't be read") as caught:
                call()
            assert caught.value.reason is Reason.UNSUPPORTED
        with pytest.raises(KvmError) as caught:
            image.write(0, b"x")
        assert caught.value.reason is Reason.WRITE_DEAD
        assert failure(image, 0, 1, 99).reason is Reason.BAD_ARGUMENT


def test_a_dump_is_not_opened_for_writing_and_not_without_a_core(tmp_path: Any) -> None:
    path = tmp_path / "core"
    path.write_bytes(bsd.k1().file())
    with path.open("rb") as file:
        with pytest.raises(KvmError) as caught:
            open_image(Files(File(file.fileno(), "core"), writable=True))
        assert caught.value.reason is Reason.UNSUPPORTED


def test_magic_is_big_endian_and_has_its_three_parts() -> None:
    assert kcore.magic(b"\x04\x9d\x8f\xca") == (1, 157, 0x8FCA)
    assert kcore.has_device_form(bsd.k1().device()[:8])
    assert not kcore.has_device_form(bsd.k1().file()[:8])
    assert not kcore.has_device_form(b"\x04\x9d")


def test_runs_in_any_order_and_many_of_them() -> None:
    made = bsd.k1()
    low, high = made.memory[:0x8000], made.memory[0x8000:]
    made.cpu, made.memory = struct.pack("<QQ4Q", 0x1000, 2, 0x8000, 0x8000, 0, 0x8000).ljust(504, b"\0"), high + low
    with opened(made.file()) as image:
        assert image.read(bsd.TEXT_BASE, PAGE, KERNEL) == pattern(5)
    runs = [(0, 0x10000), *((0x100000 + 2 * number * PAGE, PAGE) for number in range(1 << 16))]
    made.cpu = struct.pack("<QQ", 0x1000, len(runs)) + struct.pack(f"<{2 * len(runs)}Q", *itertools.chain(*runs))
    made.memory = low + high + bytes(2 * PAGE) + pattern(9)
    with opened(made.file()) as image:
        assert image.read(bsd.TEXT_BASE, PAGE, KERNEL) == pattern(5)
        assert image.read(0x100000 + 4 * PAGE, PAGE, PHYSICAL) == pattern(9)
        assert failure(image, 0x100000 + 6 * PAGE, 8, PHYSICAL).reason is Reason.SHORT_FILE
        assert failure(image, 0x100000 + PAGE, 8, PHYSICAL).reason is Reason.BEYOND_DUMP
    made.cpu = struct.pack("<QQ4Q", 0x1000, 2, 0, 1 << 62, 1 << 62, 1 << 62)  # as much as a file can hold
    with opened(made.file()) as image:
        assert image.read(bsd.DATA_PAGE, PAGE, PHYSICAL) == pattern(5)
    made.cpu = struct.pack("<QQ6Q", 0x1000, 3, 0, 1 << 62, 1 << 62, 1 << 63, 3 << 62, 1 << 60)
    with pytest.raises(KvmError, match="runs of physical memory"), opened(made.file()):
        pass
