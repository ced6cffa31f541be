"""Bounded reads of a dump file, and makedumpfile's flattened form of one.

Pure but for ``pread``: no drgn here. Offsets and sizes are in bytes.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from typing import Protocol

from kvmd.errors import Reason, error

FLAT_MAGIC = b"makedumpfile\0\0\0\0"
_FLAT_HEADER = 4096  # MAX_SIZE_MDF_HEADER of makedumpfile
_FLAT_RECORDS = 1 << 21


class Source(Protocol):
    """The bytes of a dump as its format numbers them."""

    @property
    def size(self) -> int:
        """One more than the highest offset that can be read."""

    def read(self, offset: int, length: int) -> bytes:
        """Read at most ``length`` bytes; fewer where the file ends or has a gap."""


class DumpSource(Source, Protocol):
    """The same, for all of a dump and not just its headers."""

    def read_into(self, offset: int, into: memoryview) -> int:
        """Fill the beginning of a buffer; answers how much, 0 where the file ends or has a gap."""


class FileSource:
    """A file, by its descriptor (which stays the caller's)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """The file's size."""
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Read from the file.

        :raises KvmError: SOURCE_IO if the operating system can't.
        """
        if not 0 <= offset < self._size or length <= 0:
            return b""
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length and (more := os.pread(self._fd, length - len(data), offset + len(data))):
                data += more
        except OSError as e:
            raise error(Reason.SOURCE_IO, f"read of the dump file failed: {e.strerror}", errno=e.errno) from e
        return data

    def read_into(self, offset: int, into: memoryview) -> int:
        """Read from the file, into a buffer.

        :raises KvmError: SOURCE_IO.
        """
        if not 0 <= offset < self._size:
            return 0
        try:
            return os.preadv(self._fd, [into], offset)
        except OSError as e:
            raise error(Reason.SOURCE_IO, f"read of the dump file failed: {e.strerror}", errno=e.errno) from e


class FlatSource:
    """The file inside makedumpfile's flattened form (``makedumpfile -F``, QEMU's kdump).

    After a 4096-byte header come records of (offset, size, data), big-endian, and a record of
    (-1, -1). A record may rewrite an earlier one: the later one counts.

    :raises KvmError: TRUNCATED_IMAGE if the file ends before the last record, CORRUPT_IMAGE.
    """

    def __init__(self, file: Source) -> None:
        self._file = file
        places = dict(self._records())
        self._starts = sorted(places)
        self._places = [places[start] for start in self._starts]

    def _records(self) -> list[tuple[int, tuple[int, int]]]:
        records: list[tuple[int, tuple[int, int]]] = []
        at = _FLAT_HEADER
        while len(records) < _FLAT_RECORDS:
            head = self._file.read(at, 16)
            if len(head) < 16:
                raise error(Reason.TRUNCATED_IMAGE, "the flattened dump ends before its last record")
            offset, size = struct.unpack(">qq", head)
            if offset == -1 and size == -1:
                return records
            if offset < 0 or size <= 0:
                raise error(Reason.CORRUPT_IMAGE, f"the flattened dump's record at {at:#x} makes no sense")
            if at + 16 + size > self._file.size:
                raise error(Reason.TRUNCATED_IMAGE, "the flattened dump ends inside a record")
            records.append((offset, (at + 16, size)))
            at += 16 + size
        raise error(Reason.CORRUPT_IMAGE, "the flattened dump has too many records")

    @property
    def size(self) -> int:
        """The end of the highest record."""
        return self._starts[-1] + self._places[-1][1] if self._starts else 0

    def read(self, offset: int, length: int) -> bytes:
        """Read across records, up to the first gap."""
        parts: list[bytes] = []
        while length > 0:
            index = bisect_right(self._starts, offset) - 1
            if index < 0:
                break
            place, size = self._places[index]
            inside = offset - self._starts[index]
            part = self._file.read(place + inside, min(length, size - inside))
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def read_into(self, offset: int, into: memoryview) -> int:
        """Read up to the next gap, into a buffer."""
        data = self.read(offset, len(into))
        into[: len(data)] = data
        return len(data)


def exact(source: Source, offset: int, length: int, what: str) -> bytes:
    """Read all of a header or table.

    :raises KvmError: TRUNCATED_IMAGE if the file ends before.
    """
    if length > source.size - offset or len(data := source.read(offset, length)) < length:
        raise error(Reason.TRUNCATED_IMAGE, f"the file ends inside {what}")
    return data
