"""An execfile as it is, or as it was before xz or gzip: unpacked in memory, up to a bound."""

from __future__ import annotations

import lzma
import zlib

from kvmd.errors import Reason, error
from kvmd.images.base import File
from kvmd.images.linux.source import FileSource, Source

MOST = 320 << 20
"""Bytes that are unpacked. The largest symbol files of Volatility's have 283 MB."""
_MEMORY = 160 << 20  # that xz may take; xz -9 takes 65 MiB
_XZ, _GZIP = b"\xfd7zXZ\0", b"\x1f\x8b\x08"


class Packed:
    """What was packed."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._data)

    def read(self, offset: int, length: int) -> bytes:
        """See :class:`~kvmd.images.linux.source.Source`."""
        return self._data[offset : offset + length] if offset >= 0 and length > 0 else b""


def unpacked(file: File) -> Source:
    """The bytes that a file holds.

    :raises KvmError: CORRUPT_DATA if they can't be unpacked, or are too many.
    """
    source = FileSource(file.fd)
    head = source.read(0, 6)
    if not head.startswith((_XZ, _GZIP)):
        return source
    packed = source.read(0, min(source.size, MOST))
    try:
        if head.startswith(_XZ):
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
            data, whole = stream.decompress(packed, MOST + 1), stream.eof
        else:
            gzip = zlib.decompressobj(16 + zlib.MAX_WBITS)
            data, whole = gzip.decompress(packed, MOST + 1), gzip.eof
    except (lzma.LZMAError, zlib.error, EOFError) as e:
        raise error(Reason.CORRUPT_DATA, f"{file.name} can't be unpacked: {e}", path=file.name) from e
    if len(data) > MOST:
        raise error(Reason.CORRUPT_DATA, f"{file.name} holds more than {MOST} bytes; unpack it", path=file.name)
    if not whole:
        raise error(Reason.CORRUPT_DATA, f"{file.name} can't be unpacked: it ends too early", path=file.name)
    return Packed(data)
