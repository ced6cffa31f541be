"""Ranges of physical addresses: which part of memory lies where in a file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Range(NamedTuple):
    """Physical memory from ``start`` up to ``end``, found ``at`` an offset of a file."""

    start: int
    end: int
    at: int


class Ranges:
    """Disjoint ranges in ascending order; of such as overlap, the one that begins first counts for what both hold."""

    def __init__(self, ranges: Iterable[Range]) -> None:
        self._ranges: list[Range] = []
        covered = 0
        for item in sorted(ranges, key=lambda r: (r.start, -r.end)):
            start = max(item.start, covered)
            if start < item.end:
                self._ranges.append(Range(start, item.end, item.at + start - item.start))
                covered = item.end
        self._starts = [item.start for item in self._ranges]

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __len__(self) -> int:
        return len(self._ranges)

    def find(self, address: int) -> Range | None:
        """The range that holds an address."""
        index = bisect_right(self._starts, address) - 1
        return self._ranges[index] if index >= 0 and address < self._ranges[index].end else None
