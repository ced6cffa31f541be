"""The pages of a dump that have been read, in memory that clients may read too (:mod:`kvmd.fast`).

x86-64 only: a reader relies on stores, and loads, being seen in order, and neither side has barriers.
"""

from __future__ import annotations

import mmap
from array import array

from kvmd import fast
from kvmd.fast import PAGE, WAYS


class PageCache:
    """The worker's end: the only one that writes.

    Whole pages of kernel virtual memory, never errors. Where all its slots are taken, a page gets one of them in turn:
    which pages are used is not known here, since a hit is nobody's business but the client's.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map a page cache; the descriptor stays the caller's."""
        self._slots = size // (PAGE + 8)
        self._map = memoryview(mmap.mmap(fd, size))
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
        if count > 1 and self._fill_at_once(first, count, data):
            return
        for n in range(count):
            if first + n not in self._at:
                self.put(first + n, data[n * PAGE : (n + 1) * PAGE])

    def _fill_at_once(self, page: int, count: int, data: memoryview) -> bool:
        """Take in a run of pages whose first slots are one piece, free, and never were filled, if that is so."""
        slot, last = (fast.places(each, self._slots)[0] for each in (page, page + count - 1))
        if last != slot + count - 1 or any(self._filled[slot : slot + count]):
            return False
        pages = range(page, page + count)
        if not self._at.keys().isdisjoint(pages):
            return False
        self._pages[slot * PAGE : (slot + count) * PAGE] = data[: count * PAGE]
        self._tags[slot : slot + count] = array("Q", [fast.tag(each, 0) for each in pages])
        self._held[slot : slot + count] = array("Q", pages)
        self._filled[slot : slot + count] = array("I", b"\1\0\0\0" * count)
        self._at.update(zip(pages, range(slot, slot + count), strict=True))
        return True
