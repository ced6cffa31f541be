"""Dumps for measurements, made from the ones that are shipped."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import zstandard

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
# Layout of a KDUMP file: makedumpfile's diskdump_mod.h, version 1.7.2 (struct disk_dump_header, page_desc).
_STATUS, _BLOCK = 0x1A8, 0x1AC
_DESCRIPTOR = struct.Struct("<QIIQ")  # offset, size, flags, page_flags
_ZSTD = 0x20


def unpacked(name: str) -> Path:
    """A shipped dump (such as ``debian-6.1-panic/vmcore.kdump``), unpacked once."""
    target = Path(tempfile.gettempdir()) / f"kvmd-bench-{os.getuid()}" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = target.with_suffix(f".{os.getpid()}")
        with lzma.open(DATA / f"{name}.xz") as packed, part.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        part.rename(target)
    return target


def zstd(
    source: Path, target: Path, keep: Callable[[int], bool], more: Mapping[int, bytes] | None = None
) -> tuple[int, int]:
    """Rewrite an uncompressed KDUMP file as ``makedumpfile -z`` would have, leaving pages out as ``-d`` does.

    :param keep: whether the page of this number stays.
    :param more: pages that the source doesn't have, by number.
    :returns: how many pages stayed, and how many there were.
    """
    old, added = source.read_bytes(), more or {}
    _, block, sub, bitmaps = struct.unpack_from("<Iiii", old, _STATUS)
    at_bitmap = (1 + sub) * block
    at_descriptors = at_bitmap + bitmaps * block
    out = bytearray(old[:at_descriptors])
    struct.pack_into("<I", out, _STATUS, _ZSTD)
    second = at_bitmap + bitmaps * block // 2
    bits = old[second:at_descriptors]
    present = [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
    numbers = {pfn: number for number, pfn in enumerate(present) if keep(pfn)}
    kept = sorted({*numbers, *added})
    for pfn in set(present).symmetric_difference(kept):
        out[second + (pfn >> 3)] ^= 1 << (pfn & 7)
    compressor = zstandard.ZstdCompressor(level=3)
    data, descriptors = bytearray(), bytearray()
    at_data = at_descriptors + len(kept) * _DESCRIPTOR.size
    for pfn in kept:
        page, page_flags = added.get(pfn, b""), 0
        if pfn in numbers:
            place = at_descriptors + numbers[pfn] * _DESCRIPTOR.size
            offset, size, flags, page_flags = _DESCRIPTOR.unpack_from(old, place)
            assert not flags, "the source's pages are not compressed"
            page = old[offset : offset + size]
        packed = compressor.compress(page)
        flags, stored = (_ZSTD, packed) if len(packed) < len(page) else (0, page)
        descriptors += _DESCRIPTOR.pack(at_data + len(data), len(stored), flags, page_flags)
        data += stored
    target.write_bytes(bytes(out) + descriptors + data)
    return len(kept), len(present)
