"""KDUMP files with other codecs, made from one whose pages are not packed.

zlib and zstd are Python's; LZO and Snappy come from drgn's libkdumpfile.
Layout: makedumpfile's diskdump_mod.h, version 1.7.2 (struct disk_dump_header, page_desc).
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import drgn  # noqa: F401 - brings libkdumpfile
import zstandard

_STATUS, _BLOCK = 0x1A8, 0x1AC
ROW = struct.Struct("<QIIQ")  # offset, size, flags, page_flags
PAGE = 4096


def _library(name: str) -> ctypes.CDLL:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return ctypes.CDLL(next(line.split()[-1] for line in lines if f"/{name}" in line))


def _by_c(library: str, name: str, *more: object) -> Callable[[bytes], bytes]:
    out, length = ctypes.create_string_buffer(3 * PAGE), ctypes.c_size_t()

    function = getattr(_library(library), name)

    def pack(page: bytes) -> bytes:
        length.value = len(out)
        assert not function(page, ctypes.c_size_t(len(page)), out, ctypes.byref(length), *more)
        return out.raw[: length.value]

    return pack


CODECS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "raw": (0, bytes),
    "zlib": (1, lambda page: zlib.compress(page, 1)),
    "lzo": (2, _by_c("liblzo2", "lzo1x_1_compress", ctypes.create_string_buffer(1 << 18))),
    "snappy": (4, _by_c("libsnappy", "snappy_compress")),
    "zstd": (0x20, zstandard.ZstdCompressor().compress),
}


def repacked(source: Path, codec: str, *, spread: bool = False) -> bytes:
    """The same dump with another codec; a page that gets no smaller stays as it is, and zeroes are one page for all.

    :param spread: whether pages lie in no order, with gaps.
    """
    old = source.read_bytes()
    _, block, sub, bitmaps = struct.unpack_from("<Iiii", old, _STATUS)
    table = (1 + sub + bitmaps) * block
    second = old[table - bitmaps * block // 2 : table]
    count = int.from_bytes(second, "little").bit_count()
    flag, pack = CODECS[codec]
    data, rows, zeroes = bytearray(), [b""] * count, b""
    base = table + count * ROW.size
    order = sorted(range(count), key=lambda n: n * 7919 % 10007) if spread else range(count)
    for number in order:
        offset, size, flags, _ = ROW.unpack_from(old, table + number * ROW.size)
        assert not flags
        page = old[offset : offset + size]
        if not any(page) and zeroes:
            rows[number] = zeroes
            continue
        packed = pack(page)
        stored, kind = (packed, flag) if len(packed) < len(page) else (page, 0)
        rows[number] = ROW.pack(base + len(data), len(stored), kind, 0)
        zeroes = zeroes if any(page) else rows[number]
        data += stored + bytes(13 * spread)
    return old[:table] + b"".join(rows) + bytes(data)


def flattened(data: bytes) -> bytes:
    """The same as makedumpfile -F writes it, in records of 40,000 bytes."""
    head = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    pieces = (
        struct.pack(">qq", at, len(data[at : at + 40000])) + data[at : at + 40000] for at in range(0, len(data), 40000)
    )
    return head + b"".join(pieces) + struct.pack(">qq", -1, -1)
