"""Hostile and damaged KDUMP files: a typed error each, quickly, and never a crash."""

from __future__ import annotations

import struct
import time
from collections import Counter
from typing import Any

import pytest

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.v1 import memory_pb2, process_pb2

PHYSICAL = memory_pb2.ADDRESS_SPACE_PHYSICAL
SUB = 4096
FIELDS = {
    "header_version": (8, 4),
    "block_size": (428, 4),
    "sub_hdr_size": (432, 4),
    "bitmap_blocks": (436, 4),
    "max_mapnr": (440, 4),
    "total_ram_blocks": (444, 4),
    "device_blocks": (448, 4),
    "written_blocks": (452, 4),
    "nr_cpus": (460, 4),
    "offset_vmcoreinfo": (SUB + 32, 8),
    "size_vmcoreinfo": (SUB + 40, 8),
    "offset_note": (SUB + 48, 8),
    "size_note": (SUB + 56, 8),
    "offset_eraseinfo": (SUB + 64, 8),
    "size_eraseinfo": (SUB + 72, 8),
    "start_pfn_64": (SUB + 80, 8),
    "end_pfn_64": (SUB + 88, 8),
    "max_mapnr_64": (SUB + 96, 8),
}
# Fields that nothing depends on once the others are right.
UNUSED = {"total_ram_blocks", "device_blocks", "written_blocks", "start_pfn_64", "end_pfn_64", "offset_eraseinfo"}
VALUES = {"0": 0, "i32": 2**31 - 1, "u32": 2**32 - 1, "i64": 2**63 - 1, "u64": 2**64 - 1}
REASONS = {Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE, Reason.NO_VMCOREINFO}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("field", FIELDS)
def test_every_length_field(from_bytes: Any, field: str, value: int) -> None:
    offset, size = FIELDS[field]
    data = bytearray(fixture("micro/zstd").path.read_bytes())
    data[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    began = time.monotonic()
    try:
        image = from_bytes(bytes(data))
        read = image.read(image.kernel.info.symbol("init_uts_ns"), 390, memory_pb2.ADDRESS_SPACE_KERNEL)
    except KvmError as e:
        assert e.reason in REASONS
        assert field not in UNUSED
    else:
        assert b"6.1.192-bed" in read
        assert field in UNUSED or value == 0
    assert time.monotonic() - began < 2


MICRO = ["zlib", "lzo", "snappy", "zstd", "raw", "flat-raw", "flat-zlib", "qemu-flat-zlib"]


@pytest.mark.parametrize("form", MICRO)
def test_every_codec(from_bytes: Any, form: str) -> None:
    path, truth = fixture(f"micro/{form}")
    image = from_bytes(path.read_bytes())
    banner = truth["banner"].encode()
    assert image.read(truth["kallsyms"]["linux_banner"], len(banner), memory_pb2.ADDRESS_SPACE_KERNEL) == banner
    assert image.info().format == "kdump-" + form.rsplit("-", maxsplit=1)[-1]
    assert (image.info().release, image.info().nodename) == (truth["release"], truth["nodename"])


@pytest.mark.parametrize("form", ["split-zlib.1", "split-zlib.2"])
def test_a_part_of_a_split_dump_is_refused(from_bytes: Any, form: str) -> None:
    with pytest.raises(KvmError) as caught:
        from_bytes(fixture(f"micro/{form}").path.read_bytes())
    assert caught.value.reason is Reason.SPLIT_IMAGE


def outcome(image: Any, size: int = 64 << 20) -> Counter[str]:
    counted: Counter[str] = Counter()
    for page in range(0, size, 4096):
        try:
            counted["read"] += len(image.read(page, 4096, PHYSICAL)) == 4096
        except KvmError as e:
            counted[e.reason.value] += 1
    return counted


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_cut_dump_is_read_as_far_as_it_goes(from_bytes: Any, percent: int) -> None:
    data = fixture("qemu/vmcore.kdump").path.read_bytes()
    whole, cut = outcome(from_bytes(data)), outcome(from_bytes(data[: len(data) * percent // 100]))
    assert cut["SHORT_FILE"]
    assert cut["read"]
    assert cut["read"] + cut["SHORT_FILE"] == whole["read"]
    assert cut["EXCLUDED"] == whole["EXCLUDED"]
    assert whole["SHORT_FILE"] == 0


def test_a_list_of_a_cut_dump_ends_with_why(from_bytes: Any) -> None:
    data = fixture("debian-6.1-panic/vmcore.kdump").path.read_bytes()
    image = from_bytes(data[: len(data) * 99 // 100])
    found: list[int] = []
    with pytest.raises(KvmError) as caught:
        found.extend(p.pid for p in image.processes(process_pb2.GetProcsRequest()))
    assert caught.value.reason is Reason.SHORT_FILE
    assert len(found) >= 60


@pytest.mark.parametrize("form", ["zstd", "raw", "flat-raw", "flat-zlib", "qemu-flat-zlib"])
def test_every_cut_is_survived(from_bytes: Any, form: str) -> None:
    data = fixture(f"micro/{form}").path.read_bytes()
    for at in sorted({*range(1, 600, 37), *range(600, len(data), len(data) // 40), len(data) - 1}):
        try:
            image = from_bytes(data[:at])
            outcome(image, 1 << 20)
        except KvmError as e:
            assert e.reason in {
                *(Reason.TRUNCATED_IMAGE, Reason.UNSUPPORTED_FORMAT, Reason.CORRUPT_IMAGE, Reason.NO_VMCOREINFO),
            }


def test_a_descriptor_beyond_the_file_is_caught(from_bytes: Any) -> None:
    data = bytearray(fixture("micro/raw").path.read_bytes())
    layout = from_bytes(bytes(data)).kernel.dump.layout
    page = next(a for a in range(0, 64 << 20, 4096) if layout.trouble(a) is None)
    data[layout._table : layout._table + 8] = struct.pack("<Q", 1 << 40)
    image = from_bytes(bytes(data))
    with pytest.raises(KvmError) as caught:
        image.read(page, 8, PHYSICAL)
    assert caught.value.reason is Reason.SHORT_FILE
