"""What the pages of a KDUMP file are packed with: one function a codec, by its bit in a page's flags.

Nearly all are in the process already, in C: drgn brings libkdumpfile, which brings them. So damage is to these what it
is to drgn, which another release of them may take for data. Where one is missing, drgn reads the pages that it has
packed. Of zlib's pages libdeflate makes the same in half of the time, and proves them by the same sum (Adler-32).

They are called with the interpreter's lock held (ctypes.PyDLL): this process has one thread, and to give the lock up
and take it back takes a third of what LZO takes for a page. What they make goes where it is wanted at once.

Source: makedumpfile 1.7's diskdump_mod.h (DUMP_DH_COMPRESSED_*); zlib.h of zlib 1.2; libdeflate.h of libdeflate 1.25;
lzo/lzo1x.h of LZO 2.10; snappy-c.h of Snappy 1.1; zstd.h of Zstandard 1.4.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache

import drgn  # noqa: F401 - which brings libkdumpfile

Codec = Callable[[Sequence[bytes], int, memoryview], None]
"""Unpacks pages of a size, one after the other, into a buffer that has room for them. Raises ValueError."""

_POINTER, _SIZE, _BYTES = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p


def _address(into: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(into))


def _raw(packed: Sequence[bytes], size: int, into: memoryview) -> None:
    if set(map(len, packed)) - {size}:
        raise ValueError("a page of another size")
    into[:] = b"".join(packed)


@cache
def _loaded() -> frozenset[str]:
    """The files that are mapped, libraries among them."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as lines:
        return frozenset(line.split(maxsplit=5)[-1].strip() for line in lines if "/" in line)


def _library(name: str) -> ctypes.PyDLL | None:
    """A library that is loaded."""
    found = [path for path in _loaded() if os.path.basename(path).startswith(name)]
    return ctypes.PyDLL(found[0]) if found else None


def _deflate() -> Codec | None:
    try:
        from deflate import DeflateError, zlib_decompress  # noqa: PLC0415 - a distribution may not have it: zlib will do
    except ImportError:
        return None

    def pages(packed: Sequence[bytes], size: int, into: memoryview) -> None:
        try:
            for n, data in enumerate(packed):
                into[n * size : (n + 1) * size] = zlib_decompress(data, size)
        except DeflateError as wrong:
            raise ValueError(str(wrong)) from None

    return pages


def _zlib() -> Codec | None:
    if (loaded := _library("libz.")) is None:
        return None
    function, length = loaded.uncompress, ctypes.c_ulong()
    function.argtypes, reference = [_POINTER, _POINTER, _BYTES, ctypes.c_ulong], ctypes.addressof(length)

    def pages(packed: Sequence[bytes], size: int, into: memoryview) -> None:
        to = _address(into)
        for data in packed:
            length.value = size
            if function(to, reference, data, len(data)) or length.value != size:
                raise ValueError("uncompress fails")
            to += size

    return pages


def _by_reference(library: str, name: str, *more: object) -> Codec | None:
    """A C function (data, length, output, its length by reference, ...) that answers 0."""
    if (loaded := _library(library)) is None:
        return None
    function, length = getattr(loaded, name), _SIZE()
    function.argtypes = [_BYTES, _SIZE, _POINTER, _POINTER, *[_POINTER] * len(more)]
    reference = ctypes.addressof(length)

    def pages(packed: Sequence[bytes], size: int, into: memoryview) -> None:
        to = _address(into)
        for data in packed:
            length.value = size
            if function(data, len(data), to, reference, *more) or length.value != size:
                raise ValueError(f"{name} fails")
            to += size

    return pages


def _zstd() -> Codec | None:
    if (loaded := _library("libzstd")) is None:
        return None
    loaded.ZSTD_createDCtx.restype = _POINTER
    context, function = loaded.ZSTD_createDCtx(), loaded.ZSTD_decompressDCtx
    function.argtypes, function.restype = [_POINTER, _POINTER, _SIZE, _BYTES, _SIZE], _SIZE

    def pages(packed: Sequence[bytes], size: int, into: memoryview) -> None:
        to = _address(into)
        for data in packed:
            if function(context, to, size, data, len(data)) != size:  # an error is a very large number
                raise ValueError("ZSTD_decompressDCtx fails")
            to += size

    return pages


_KNOWN: dict[int, Codec | None] = {
    0: _raw,
    1: _deflate() or _zlib(),
    2: _by_reference("liblzo2", "lzo1x_decompress_safe", None),
    4: _by_reference("libsnappy", "snappy_uncompress"),
    0x20: _zstd(),
}
MASK = 0x27
"""The bits of a page's flags that say its codec."""
CODECS = {bit: codec for bit, codec in _KNOWN.items() if codec is not None}
"""Those that are here."""


def unpack(codec: int, size: int, packed: Sequence[bytes], into: memoryview) -> None:
    """Unpack pages: see :data:`kvmd.images.base.Unpack`."""
    if codec not in CODECS:
        raise ValueError(f"codec {codec:#x}")
    if len(into) != len(packed) * size:
        raise ValueError("a buffer of another size")
    if packed:
        CODECS[codec](packed, size, into)
