"""Where the tables of kallsyms lie that were found by scanning, so that another dump of the build need not be scanned.

They are one span of memory, from the first table to the last with all between them: that these bytes are the same says
as much as finding the tables in them again. Addresses of a kernel differ from dump to dump in one word of it, the base.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import astuple, dataclass, replace

from kvmd.images.linux.kallsyms import RawKallsyms
from kvmd.images.linux.scan.names import Names
from kvmd.images.linux.scan.values import Words

MOST = 36 << 20
"""The longest span: what a scan looks at around a table of tokens."""
_PACKED = struct.Struct("<q7i")
_NONE = -1
_INDEX = 512  # bytes of the tokens' index
_ALL = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Tables:
    """The places of one kernel's tables.

    :ivar start: the address of the span, or what it is relative to another.
    :ivar length: of the span. The places that follow are in it.
    :ivar count: how many symbols there are.
    :ivar base: the place of what offsets count from; below zero if there is none.
    """

    start: int
    length: int
    count: int
    offsets: int
    base: int
    names: int
    tokens: int
    index: int

    def moved(self, by: int) -> Tables:
        """The same for a kernel at another address."""
        return replace(self, start=self.start + by)

    def rebased(self, span: bytes, by: int) -> bytes:
        """The span's bytes as they are in a kernel that is moved."""
        if self.base < 0:
            return span
        base = int.from_bytes(span[self.base : self.base + 8], "little") + by & _ALL
        return span[: self.base] + base.to_bytes(8, "little") + span[self.base + 8 :]

    def digest(self, span: bytes) -> bytes:
        """SHA-256 of the span."""
        return hashlib.sha256(span).digest()

    def raw(self, span: bytes) -> RawKallsyms:
        """The tables, of the span's bytes."""
        return RawKallsyms(
            span[self.offsets : self.offsets + 4 * self.count],
            span[self.names : self.tokens],
            span[self.tokens : self.index],
            span[self.index : self.index + _INDEX],
            placed=self.base < 0,
        )

    def packed(self) -> bytes:
        """As an index keeps it."""
        return _PACKED.pack(*astuple(self))

    @classmethod
    def unpack(cls, data: memoryview) -> Tables:
        """Take what was packed.

        :raises ValueError: it is none.
        """
        try:
            found = cls(*_PACKED.unpack(data))
        except struct.error as e:
            raise ValueError(str(e)) from e
        ends = (found.offsets + 4 * found.count, found.base + 8, found.tokens, found.index + _INDEX)
        starts = (found.count, found.offsets, found.names, found.tokens, found.index)
        if found.length > MOST or min(starts) < 0 or max(ends) > found.length or found.base < _NONE:
            raise ValueError("tables outside of their span")
        return found


def tables_of(address: int, names: Names, words: Words | None) -> Tables | None:
    """Where tables are that were found in a window; None if their bytes hold addresses of the kernel.

    :param address: of the window.
    """
    if words is None:
        return None
    count = len(names.names)
    starts = [names.count_at, words.at] + ([] if words.base is None else [words.base])
    ends = [names.end, words.at + 4 * count] + ([] if words.base is None else [words.base + 8])
    start = min(starts) & -8  # tables are looked for by their alignment
    base = _NONE if words.base is None else words.base - start
    places = (words.at - start, base, names.at - start, names.tokens - start, names.end - _INDEX - start)
    return Tables(address + start, max(ends) - start, count, *places)
