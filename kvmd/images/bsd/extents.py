"""Runs of physical memory and where a dump's file has them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable

from kvmd.errors import KvmError, Reason, error
from kvmd.images.bsd.core import END, Place

_MOST_OFFSET = 1 << 63  # of an off_t


class Extents:
    """A table of runs (physical start, size, offset in the file), in bytes; empty ones don't count.

    A sparse dump may have a million, so they are kept as plain numbers.

    :raises KvmError: CORRUPT_IMAGE where they overlap or run over the end of the address space.
    """

    def __init__(self, runs: Iterable[tuple[int, int, int]]) -> None:
        self._starts, self._sizes, self._offsets = array("Q"), array("Q"), array("Q")
        for start, size, offset in runs:
            if start + size > END or offset >= _MOST_OFFSET:
                raise _nonsense()
            if size:
                self._starts.append(start)
                self._sizes.append(size)
                self._offsets.append(offset)
        if not self._ascending():
            self._sort()
            if not self._ascending():
                raise _nonsense()

    def _ascending(self) -> bool:
        end = 0
        for start, size in zip(self._starts, self._sizes, strict=True):
            if start < end:
                return False
            end = start + size
        return True

    def _sort(self) -> None:
        order = sorted(range(len(self._starts)), key=self._starts.__getitem__)
        self._sizes = array("Q", (self._sizes[index] for index in order))
        self._offsets = array("Q", (self._offsets[index] for index in order))
        self._starts = array("Q", sorted(self._starts))

    def find(self, physical: int) -> Place | None:
        """Where a byte is, and how many follow in its run; None if no run holds it."""
        index = bisect_right(self._starts, physical) - 1
        if index < 0:
            return None
        inside, size = physical - self._starts[index], self._sizes[index]
        return Place(self._offsets[index] + inside, size - inside) if inside < size else None


def _nonsense() -> KvmError:
    return error(Reason.CORRUPT_IMAGE, "the dump's runs of physical memory overlap or make no sense")
