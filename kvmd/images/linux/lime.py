"""LiME's memory dumps (format "lime", version 1): a header before each range of physical memory.

Source: LiME's doc/README.md. The header has 32 bytes, little-endian: magic 0x4c694d45, version, first and last
physical address, eight reserved bytes.
"""

from __future__ import annotations

import struct

from kvmd.errors import Reason, error
from kvmd.images.linux.segments import Piece, Segments
from kvmd.images.linux.source import DumpSource, exact

MAGIC = b"EMiL"
_HEADER = struct.Struct("<IIQQ8x")
_MOST = 1 << 12  # ranges; a machine has tens


class LimeLayout(Segments):
    """A LiME file.

    :raises KvmError: CORRUPT_IMAGE, TRUNCATED_IMAGE, UNSUPPORTED_FORMAT (another version).
    """

    format = "lime"
    vmcoreinfo = notes = b""

    def __init__(self, source: DumpSource) -> None:
        super().__init__(source, sorted(self._ranges_of(source), key=lambda piece: piece[0]))
        if any(before[1] > after[0] for before, after in zip(self._ranges, self._ranges[1:], strict=False)):
            raise error(Reason.CORRUPT_IMAGE, "ranges of the LiME file overlap")

    @staticmethod
    def _ranges_of(source: DumpSource) -> list[Piece]:
        found: list[Piece] = []
        at = 0
        while at < source.size:
            magic, version, first, last = _HEADER.unpack(exact(source, at, _HEADER.size, "a LiME header"))
            if magic != int.from_bytes(MAGIC, "little") or first > last or last >= 1 << 52 or len(found) >= _MOST:
                raise error(Reason.CORRUPT_IMAGE, f"the LiME header at {at:#x} of the file makes no sense")
            if version != 1:
                raise error(Reason.UNSUPPORTED_FORMAT, f"a LiME file of version {version}, which is not supported")
            at += _HEADER.size
            found.append((first, last + 1, at))
            at += last + 1 - first
        return found
