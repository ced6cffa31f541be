"""The compressors of zswap and zram, by the names that the kernel gives them. Pure.

Source: Linux crypto/ (lzo.c, lzo-rle.c, lz4.c, zstd.c, deflate.c: raw streams, windows of 2 KiB for deflate) and, since
6.12, drivers/block/zram/backend_*.c, which write the same. Whatever the input says, the output is at most a page.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import lz4.block
import zstandard

from kvmd.errors import Reason, error
from kvmd.images.linux.swap import lzo

_MAX_WINDOW = 1 << 20  # bytes; the kernel's parameters for a page give less


def _lz4(data: bytes, size: int) -> bytes:
    page: bytes = lz4.block.decompress(data, uncompressed_size=size)
    return page


def _zstd(data: bytes, size: int) -> bytes:
    # The frame's own word for its size would be allocated.
    if zstandard.frame_content_size(data) > size:
        raise ValueError("more output than there may be")
    return zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress(data, max_output_size=size)


def _deflate(data: bytes, size: int) -> bytes:
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    page = stream.decompress(data, size + 1)
    if not stream.eof:
        raise ValueError("the stream does not end")
    return page


CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "lzo": lzo.decompress,
    "lzo-rle": lzo.decompress,
    "lz4": _lz4,
    "lz4hc": _lz4,
    "zstd": _zstd,
    "deflate": _deflate,
}


def decompress(where: str, name: str, data: bytes, size: int) -> bytes:
    """Decompress a page.

    :param where: ``zswap`` or ``zram``, for messages.
    :param size: of a page, in bytes.
    :raises KvmError: NOT_PRESENT for a compressor that isn't known, CORRUPT_PAGE.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise error(Reason.NOT_PRESENT, f"in {where}, unsupported compressor {name}", compressor=name)
    try:
        page = codec(data, size)
    except (ValueError, RuntimeError, zlib.error, lz4.block.LZ4BlockError, zstandard.ZstdError) as e:
        raise error(Reason.CORRUPT_PAGE, f"in {where}, and does not decompress ({name}): {e}", compressor=name) from e
    if len(page) != size:
        message = f"in {where}, and decompresses ({name}) to {len(page)} bytes, which is no page"
        raise error(Reason.CORRUPT_PAGE, message, compressor=name)
    return page
