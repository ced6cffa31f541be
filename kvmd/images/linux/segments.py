"""Physical memory in pieces of a file, each whole: what ELF cores, LiME's files and raw images are."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from drgn import FaultError

from kvmd.errors import Reason
from kvmd.images.linux.layout import PAGE
from kvmd.images.linux.source import DumpSource

Piece = tuple[int, int, int | None]
"""The first physical address, one more than the last, and the offset in the file; None: left out of the dump."""


class Segments:
    """A file's pieces.

    :param ranges: sorted by address, disjoint.
    """

    page_size = PAGE

    def __init__(self, source: DumpSource, ranges: list[Piece]) -> None:
        self._source = source
        self._ranges = ranges
        self._starts = [start for start, _, _ in ranges]

    def runs(self) -> Iterator[range]:
        """See :class:`~kvmd.images.linux.layout.DumpLayout`."""
        for start, end, offset in self._ranges:
            if offset is not None:
                yield range(start, min(end, start + max(self._source.size - offset, 0)))

    def _range(self, address: int) -> tuple[int, int, int | None] | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ranges[index][1]:
            return None
        return self._ranges[index]

    def trouble(self, address: int) -> Reason | None:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        found = self._range(address)
        if found is None:
            return Reason.BEYOND_DUMP
        start, end, offset = found
        if offset is None:
            return Reason.EXCLUDED
        last = min(end, (address | (self.page_size - 1)) + 1)
        return Reason.SHORT_FILE if offset + last - start > self._source.size else None

    def read(self, address: int, length: int, _offset: int, _physical: bool) -> bytes:
        """Read physical memory; the signature is that of drgn's memory segments.

        :raises drgn.FaultError: at the first byte that the file doesn't hold.
        """
        parts: list[bytes] = []
        while length > 0:
            found = self._range(address)
            start, end, offset = found or (0, 0, None)
            if offset is None:
                raise FaultError("the dump does not hold the page", address)
            part = self._source.read(offset + address - start, min(length, end - address))
            if not part:
                raise FaultError("the dump file ends before the page", address)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, address: int, into: memoryview) -> bool:
        """Fill a buffer with physical memory.

        :returns: whether the file holds all of it.
        """
        while len(into):
            start, end, offset = self._range(address) or (0, 0, None)
            if offset is None:
                return False
            done = self._source.read_into(offset + address - start, into[: end - address])
            if not done:
                return False
            address, into = address + done, into[done:]
        return True
