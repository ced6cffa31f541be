"""The page cache of a dump, from the reader's side (:mod:`kvmd.fast`): a hit costs no system call."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from kvmd import fast
from kvmd.fast import PAGE

_INSIDE = PAGE - 1


class Pages:
    """A page cache, mapped read-only.

    Safe to use from several threads: nothing here changes but the notes of where pages were found, which are looked
    up again when they are wrong.
    """

    def __init__(self, fd: int, size: int, ended: Sequence[int] = (0,)) -> None:
        """Map a cache; the descriptor stays the caller's.

        :param ended: its item is not 0 any more once nothing is to be read.
        :raises OSError: it can't be mapped.
        """
        self._slots = size // (PAGE + 8)
        self._bytes = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        self._tags = memoryview(self._bytes)[: self._slots * 8].cast("Q")
        self._ended = ended
        self._found: dict[int, tuple[int, int, int]] = {}

    @property
    def parts(self) -> tuple[dict[int, tuple[int, int, int]], mmap.mmap, memoryview, Sequence[int]]:
        """Where pages were found (offset, slot, tag), all bytes, all tags, and what says that it has ended."""
        return self._found, self._bytes, self._tags, self._ended

    def read(self, address: int, length: int) -> bytes | None:
        """Read from one page; None if it isn't here."""
        try:
            at, slot, tag = self._found[address >> 12]
        except KeyError:
            if (found := self._find(address >> 12)) is None:
                return None
            at, slot, tag = found
        inside = address & _INSIDE
        if 0 <= length <= PAGE - inside:
            at += inside
            data = self._bytes[at : at + length]
            if self._tags[slot] == tag and not self._ended[0]:
                return data
            self._found.pop(address >> 12, None)
            return None
        return self._read_pages(address, length) if length > 0 and not self._ended[0] else None

    def _read_pages(self, address: int, length: int) -> bytes | None:
        """Read from several pages: pieces of memory that hold runs of them."""
        end = address + length
        parts: list[bytes] = []
        while address < end:
            if not (part := self._read_run(address >> 12, address & _INSIDE, end - address)):
                return None
            parts.append(part)
            address += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_run(self, page: int, inside: int, length: int) -> bytes | None:
        """Read the beginning of a range, as much of it as is in one piece; None if its first page isn't here."""
        if (found := self._find(page)) is None:
            return None
        at, slot, _ = found
        tags = self._tags[slot : slot + (inside + length + _INSIDE >> 12)]
        before = tags.tolist()
        count = 0
        for word in before:
            if word >> 12 != page + count:
                break
            count += 1
        data = self._bytes[at + inside : at + min(inside + length, count * PAGE)]
        return data if count and tags[:count].tolist() == before[:count] else None

    def read_each(self, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Read many ranges; None for those that are not here."""
        read = self.read
        return [read(address, length) for address, length in ranges]

    def note(self, page: int, slot: int) -> None:
        """Take note of the slot where the worker says that a page is."""
        if slot < self._slots and fast.tagged(word := self._tags[slot]) == page:
            self._remember(page, slot, word)

    def _find(self, page: int) -> tuple[int, int, int] | None:
        if page <= 0 or page >> 52:
            return None
        tags, last = self._tags, self._slots - 1
        for place in fast.places(page, self._slots):
            if (word := tags[place & last]) >> 12 == page:
                return self._remember(page, place & last, word)
        return None

    def _remember(self, page: int, slot: int, word: int) -> tuple[int, int, int]:
        if len(self._found) > self._slots:
            self._found.clear()
        found = self._found[page] = self._slots * 8 + slot * PAGE, slot, word
        return found
