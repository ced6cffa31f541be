"""The pages of a FreeBSD minidump: which there are, by a bitmap, and where in the file.

Source: FreeBSD sys/amd64/amd64/minidump_machdep.c, lib/libkvm/kvm_private.c. Bit i stands for the page of id i; the
pages of set bits follow each other in the file. Ids number all pages from physical 0 on or, where there is a table of
ranges (dump_avail), those of the ranges alone. A page in a gap between two ranges has no id; FreeBSD's libkvm takes it
for another range's (docs/quirks.md, Q26).
"""

from __future__ import annotations

import itertools
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from kvmd.errors import Reason, error
from kvmd.images.bsd.core import Place
from kvmd.images.linux.source import Source

_BLOCK = 16 << 10  # bytes of the bitmap that are looked at together
_BITS = 8 * _BLOCK
_BLOCKS_KEPT = 64
_SCAN = 1 << 20  # bytes of it that are searched together
_SCAN_BITS = 8 * _SCAN

Range = tuple[int, int]


class Layout(NamedTuple):
    """Where a minidump's file has the bitmap and the pages; in bytes."""

    bitmap: int
    bitmap_size: int
    pages: int
    page_size: int


class SparsePages:
    """The pages of one minidump. Opening reads nothing: bits are counted as far as they are asked for.

    :param ranges: (start, end) of physical memory that has ids; None: all that there are bits for.
    :raises KvmError: CORRUPT_IMAGE where the ranges overlap or are out of order.
    """

    def __init__(self, source: Source, layout: Layout, ranges: Sequence[Range] | None) -> None:
        self._source, self._layout = source, layout
        self._counts = array("Q", [0])
        size, bits = layout.page_size, layout.bitmap_size * 8
        self._firsts, self._ends, self._ids = [0], [bits], [0]
        if ranges is not None:
            # The first page of a range may be the last of the one before, and then has two ids, as its writer has it.
            self._firsts = [start // size for start, _ in ranges]
            self._ends = [-(-end // size) for _, end in ranges]
            self._ids = [0]
            for (start, end), first, last in zip(ranges, self._firsts, self._ends, strict=True):
                if end < start:
                    raise error(Reason.CORRUPT_IMAGE, "the minidump's ranges of memory make no sense")
                self._ids.append(self._ids[-1] + last - first)
            if any(start < end for (_, end), (start, _) in itertools.pairwise(ranges)):
                raise error(Reason.CORRUPT_IMAGE, "the minidump's ranges of memory overlap")
        self._block = lru_cache(_BLOCKS_KEPT)(self._read_block)

    def find(self, physical: int) -> Place | Reason:
        """Where a byte is, up to the end of its page; EXCLUDED if its bit is clear, BEYOND_DUMP if it has none."""
        size = self._layout.page_size
        page_id = self._id(physical // size)
        if page_id is None or page_id >= self._layout.bitmap_size * 8:
            return Reason.BEYOND_DUMP
        block, bit = divmod(page_id, _BITS)
        bits = self._block(block)
        if not bits >> bit & 1:
            return Reason.EXCLUDED
        before = self._count(block) + (bits & (1 << bit) - 1).bit_count()
        inside = physical % size
        return Place(self._layout.pages + before * size + inside, size - inside)

    def present(self, physical: int) -> Iterator[int]:
        """The physical addresses of the pages that there are, ascending, from the one on that holds ``physical``."""
        size, first = self._layout.page_size, physical // self._layout.page_size
        for start, end, start_id in zip(self._firsts, self._ends, self._ids, strict=False):
            for page_id in self._set_bits(start_id + max(first - start, 0), start_id + end - start):
                yield (start + page_id - start_id) * size

    def _id(self, page: int) -> int | None:
        index = bisect_right(self._firsts, page) - 1
        if index > 0 and page < self._ends[index - 1]:
            index -= 1  # the page that two ranges share
        if index < 0 or page >= self._ends[index]:
            return None
        return self._ids[index] + page - self._firsts[index]

    def _read_block(self, number: int) -> int:
        at = number * _BLOCK
        length = min(_BLOCK, self._layout.bitmap_size - at)
        return int.from_bytes(self._source.read(self._layout.bitmap + at, length), "little")

    def _count(self, block: int) -> int:
        """How many bits are set before a block."""
        while len(self._counts) <= block:
            self._counts.append(self._counts[-1] + self._read_block(len(self._counts) - 1).bit_count())
        return self._counts[block]

    def _set_bits(self, start: int, end: int) -> Iterator[int]:
        end = min(end, self._layout.bitmap_size * 8)
        while start < end:
            base = start - start % _SCAN_BITS
            length = min(_SCAN, self._layout.bitmap_size - base // 8)
            data = self._source.read(self._layout.bitmap + base // 8, length)
            if data.strip(b"\0"):
                yield from itertools.takewhile(lambda bit: bit < end, _ones(data, start - base, base))
            start = base + _SCAN_BITS


def _ones(data: bytes, first: int, base: int) -> Iterator[int]:
    """The set bits from one on, counted from ``base``."""
    words = struct.unpack(f"<{-(-len(data) // 8)}Q", data + bytes(-len(data) % 8))
    for index in range(first // 64, len(words)):
        word, at = words[index], index * 64
        if at < first:
            word &= -(1 << first - at)
        while word:
            low = word & -word
            yield base + at + low.bit_length() - 1
            word ^= low
