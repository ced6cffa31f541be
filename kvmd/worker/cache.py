"""The pages of a dump that have been read, in memory that clients may read too (:mod:`kvmd.fast`).

x86-64 only: a reader relies on stores, and loads, being seen in order, and neither side has barriers.
"""

from __future__ import annotations

import contextlib
import mmap
from array import array

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
        with contextlib.suppress(OSError):  # new memory comes cheaper at once than page by page
            self._memory.madvise(_MADV_POPULATE_WRITE, self._slots * 8 + slot * PAGE, count * PAGE)
        self._pages[slot * PAGE : (slot + count) * PAGE] = data[: count * PAGE]
        self._tags[slot : slot + count] = array("Q", fast.first_tags(page, count))
        self._held[slot : slot + count] = array("Q", pages)
        self._filled[slot : slot + count] = array("I", b"\1\0\0\0" * count)
        self._at.update(zip(pages, range(slot, slot + count), strict=True))
        return True
