"""What the pages of a KDUMP file are packed with: one function a codec, by its bit in a page's flags.

zlib is Python's. zstd, LZO and Snappy are in the process already, in C: drgn brings libkdumpfile, which brings them. So
damage is to these what it is to drgn, which another release of them may take for data. Where one is missing, drgn reads
the pages that it has packed.

Source: makedumpfile 1.7's diskdump_mod.h (DUMP_DH_COMPRESSED_*); lzo/lzo1x.h of LZO 2.10; snappy-c.h of Snappy 1.1;
zstd.h of Zstandard 1.4.
"""

from __future__ import annotations

import ctypes
import os
import zlib
from collections.abc import Callable, Sequence

import drgn  # noqa: F401 - which brings libkdumpfile

Codec = Callable[[bytes, int], bytes]
"""From a packed page, and the size that it must have; what comes out is no longer than that and a byte."""

_MOST = 64 << 10  # the largest page
_OUTPUT = ctypes.create_string_buffer(_MOST)
_VIEW = memoryview(_OUTPUT).cast("B")


def _raw(data: bytes, _size: int) -> bytes:
    return data


def _zlib(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    page = stream.decompress(data, size + 1)
    if not stream.eof:  # what has not come to its end has not been compared with its checksum
        raise ValueError("a stream without an end")
    return page


def _library(name: str) -> ctypes.CDLL | None:
    """A library that is loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        paths = {line.split(maxsplit=5)[-1].strip() for line in lines if name in line}
    found = [path for path in paths if os.path.basename(path).startswith(name)]
    return ctypes.CDLL(found[0]) if found else None


def _by_reference(library: str, name: str, *more: object) -> Codec | None:
    """A C function (data, length, output, its length by reference, ...) that answers 0."""
    if (loaded := _library(library)) is None:
        return None
    function, length = getattr(loaded, name), ctypes.c_size_t()
    pointers = [ctypes.c_void_p] * len(more)
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p, *pointers]
    function.restype = ctypes.c_int
    reference = ctypes.addressof(length)

    def one(data: bytes, size: int) -> bytes:
        length.value = min(size, _MOST)
        if function(data, len(data), _OUTPUT, reference, *more):
            raise ValueError(f"{name} fails")
        return bytes(_VIEW[: length.value])

    return one


def _zstd() -> Codec | None:
    if (loaded := _library("libzstd")) is None:
        return None
    loaded.ZSTD_createDCtx.restype = ctypes.c_void_p
    context, function = loaded.ZSTD_createDCtx(), loaded.ZSTD_decompressDCtx
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    function.restype = ctypes.c_size_t

    def one(data: bytes, size: int) -> bytes:
        length = function(context, _OUTPUT, min(size, _MOST), data, len(data))
        if length > size:  # an error is a very large number
            raise ValueError("ZSTD_decompressDCtx fails")
        return bytes(_VIEW[:length])

    return one


_KNOWN: dict[int, Codec | None] = {
    0: _raw,
    1: _zlib,
    2: _by_reference("liblzo2", "lzo1x_decompress_safe", None),
    4: _by_reference("libsnappy", "snappy_uncompress"),
    0x20: _zstd(),
}
MASK = 0x27
"""The bits of a page's flags that say its codec."""
CODECS = {bit: codec for bit, codec in _KNOWN.items() if codec is not None}
"""Those that are here."""


def unpack(codec: int, size: int, packed: Sequence[bytes]) -> bytes:
    """Unpack pages: see :data:`kvmd.images.base.Unpack`."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec:#x}")
    one = CODECS[codec]
    try:
        pages = [one(each, size) for each in packed]
    except zlib.error as failure:
        raise ValueError(failure) from failure
    if set(map(len, pages)) - {size}:
        raise ValueError("a page of another size")
    return b"".join(pages)
