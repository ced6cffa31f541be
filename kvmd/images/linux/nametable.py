"""Which numbers belong to a name: a table that is searched where it lies, without being loaded. Pure.

It holds hashes (CRC-32 of the name) in ascending order, and beside each a number. What a number stands for, its user
looks up and compares with the name: several names may have one hash.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator

from kvmd.images.linux.sections import Bytes


class NameTable:
    """A table as it was made.

    :raises ValueError: it is none.
    """

    def __init__(self, data: memoryview) -> None:
        if len(data) % 8:
            raise ValueError("a table of names is cut")
        words = data.cast("B").cast("I")
        self._count = len(words) // 2
        self._hashes, self._numbers = words[: self._count], words[self._count :]

    def find(self, name: bytes) -> Iterator[int]:
        """Give the numbers that a name may have, those that it has among them in ascending order."""
        wanted = zlib.crc32(name)
        at = bisect_left(self._hashes, wanted)
        while at < self._count and self._hashes[at] == wanted:
            yield self._numbers[at]
            at += 1


def make(entries: Iterable[tuple[Bytes, int]]) -> bytes:
    """Make a table of names and their numbers (u32)."""
    ordered = sorted(zlib.crc32(name) << 32 | number for name, number in entries)
    hashes = array("I", [entry >> 32 for entry in ordered])
    return hashes.tobytes() + array("I", [entry & 0xFFFFFFFF for entry in ordered]).tobytes()
