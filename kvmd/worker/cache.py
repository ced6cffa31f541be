"""The pages of a dump that have been read, in memory that clients may read too (:mod:`kvmd.fast`).

x86-64 only: a reader relies on stores, and loads, being seen in order, and neither side has barriers.
"""

from __future__ import annotations

import contextlib
import mmap
from array import array
from collections.abc import Iterator

from kvmd import fast
from kvmd.fast import PAGE, WAYS

_MADV_POPULATE_WRITE = 23  # Linux 5.14, include/uapi/asm-generic/mman-common.h


class PageCache:
    """The worker's end: the only one that writes.

    Whole pages of kernel virtual memory, never errors. Where all its slots are taken, a page gets one of them in turn:
    which pages are used is not known here, since a hit is nobody's business but the client's.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map a page cache; the descriptor stays the caller's."""
        self._slots = size // (PAGE + 8)
        self._memory = mmap.mmap(fd, size)
        self._map = memoryview(self._memory)
        self._tags = self._map[: self._slots * 8].cast("Q")
        self._pages = self._map[self._slots * 8 :]
        self._at: dict[int, int] = {}
        self._held = array("Q", bytes(8 * self._slots))
        self._filled = array("I", bytes(4 * self._slots))
        self._turn = 0

    def find(self, page: int) -> int | None:
        """The slot of a page, if it is here."""
        return self._at.get(page)

    def data(self, slot: int) -> memoryview:
        """The page in a slot."""
        return self._pages[slot * PAGE : (slot + 1) * PAGE]

    def copy(self, address: int, into: memoryview) -> int:
        """Fill the beginning of a buffer, as far as the pages are here, and in one piece.

        :returns: how many bytes that is.
        """
        page, inside = address >> 12, address % PAGE
        slot, count = self._at.get(page), -(-(inside + len(into)) // PAGE)
        if slot is None:
            return 0
        held = self._held[slot : slot + count]
        count = len(held)  # slots end
        if held != array("Q", range(page, page + count)):
            count = next(n for n, each in enumerate(held) if each != page + n)
        size = min(len(into), count * PAGE - inside)
        into[:size] = self._pages[slot * PAGE + inside : slot * PAGE + inside + size]
        return size

    def put(self, page: int, data: bytes | memoryview) -> int:
        """Take a page in that isn't here, and isn't the first of all, whose number is that of an empty slot.

        :returns: its slot.
        """
        slot = self._free(page)
        if self._held[slot]:
            del self._at[self._held[slot]]
        self._tags[slot] = 0
        self._pages[slot * PAGE : (slot + 1) * PAGE] = data
        self._tags[slot] = fast.tag(page, self._filled[slot])
        self._at[page], self._held[slot] = slot, page
        self._filled[slot] += 1
        return slot

    def _free(self, page: int) -> int:
        """A slot for a page: the first that is free, else the next in turn."""
        places = fast.places(page, self._slots)
        for place in places:
            if not self._held[place & self._slots - 1]:
                return place & self._slots - 1
        self._turn += 1
        return places[self._turn % WAYS] & self._slots - 1

    def fill(self, address: int, data: memoryview) -> None:
        """Take in the whole pages of a range that was read."""
        data = data[-address % PAGE :]
        first, count = -(-address // PAGE), len(data) // PAGE
        if not first:
            first, count, data = first + 1, count - 1, data[PAGE:]
        for page, size in self.missing(first, count):
            at = (page - first) * PAGE
            if size > 1 and (slot := self.room(page, size)) is not None:
                self.run(slot, size)[:] = data[at : at + size * PAGE]
                self.filled(page, slot, size)
            else:
                for n in range(size):
                    self.put(page + n, data[at + n * PAGE : at + (n + 1) * PAGE])

    def missing(self, page: int, count: int) -> Iterator[tuple[int, int]]:
        """Those of so many pages, from one on, that are not here: runs of them, each by its first and their number."""
        here, end = self._at, page + count
        while page < end:
            start = page
            while page < end and page not in here:
                page += 1
            if page > start:
                yield start, page - start
            while page < end and page in here:
                page += 1

    def room(self, page: int, count: int) -> int | None:
        """Make room for a run of pages that aren't here, to be filled (:meth:`run`, :meth:`filled`) before all else.

        :returns: the first of slots that follow one another; None if those of the pages don't.
        """
        places = fast.places(page, self._slots)
        if fast.places(page + count - 1, self._slots)[0] != places[0] + count - 1:
            return None
        found = [place & self._slots - 1 for place in places]
        found = [place for place in found if place + count <= self._slots]
        slot = next((place for place in found if not any(self._held[place : place + count])), None)
        if slot is None and found:
            self._turn += 1
            slot = found[self._turn % len(found)]
            self._give_up(slot, count)
        if slot is not None and not all(self._filled[slot : slot + count]):
            with contextlib.suppress(OSError):  # new memory comes cheaper at once than page by page
                self._memory.madvise(_MADV_POPULATE_WRITE, self._slots * 8 + slot * PAGE, count * PAGE)
        return slot

    def _give_up(self, slot: int, count: int) -> None:
        none = array("Q", bytes(8 * count))
        self._tags[slot : slot + count] = none
        for page in filter(None, self._held[slot : slot + count]):
            del self._at[page]
        self._held[slot : slot + count] = none

    def run(self, slot: int, count: int) -> memoryview:
        """The memory of so many slots."""
        return self._pages[slot * PAGE : (slot + count) * PAGE]

    def filled(self, page: int, slot: int, count: int) -> None:
        """Let everybody see a run of pages for which there was :meth:`room`."""
        pages, before = range(page, page + count), self._filled[slot : slot + count]
        tags = map(fast.tag, pages, before) if any(before) else fast.first_tags(page, count)
        self._tags[slot : slot + count] = array("Q", tags)
        self._held[slot : slot + count] = array("Q", pages)
        self._filled[slot : slot + count] = array("I", [each + 1 for each in before])
        self._at.update(zip(pages, range(slot, slot + count), strict=True))
