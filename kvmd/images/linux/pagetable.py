"""Walks of page tables: why an address has no memory, and where user memory lies.

What an entry means is told by the architecture's :class:`Paging`. All reads are physical.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.order import LITTLE, Order, number, words

READ, WRITE, EXECUTE = 1, 2, 4
PRESENT = 1
"""An entry that the CPU follows, on most architectures."""


class Place(NamedTuple):
    """Where a virtual address lies: its physical address, and how many bytes follow in the same page."""

    physical: int
    length: int


class Paging(ABC):
    """How an architecture lays out its page tables. Levels count from 1, the last tables.

    :param page_shift: the size of a page and of a table, as a power of two; an entry has 8 bytes.
    :param bits: how many bits of an address the tables translate.
    :ivar kernel: the lowest address that the kernel's own top-level table translates.
    :ivar bottom: the lowest address of the kernel's half.
    :ivar base: the address that entry 0 of that table maps.
    :ivar user_end: where the part of the address space ends that is a process's.
    :ivar levels: how many there are, at most.
    :ivar entries: how many entries a table has, at most.
    :ivar order: the byte order of entries.
    """

    kernel: int
    bottom: int
    user_end: int
    order: Order = LITTLE

    def __init__(self, page_shift: int, bits: int) -> None:
        self.page_size = 1 << page_shift
        self.entries = self.page_size // 8
        self.levels = -(-(bits - page_shift) // (page_shift - 3))
        self.base = (1 << 64) - (1 << bits)
        self._page_shift, self._bits = page_shift, bits

    def shift(self, level: int) -> int:
        """The size of what an entry of a level maps, as a power of two."""
        return self._page_shift + (self._page_shift - 3) * (level - 1)

    def count(self, level: int) -> int:
        """How many entries a table of a level has."""
        return 1 << min(self._page_shift - 3, self._bits - self.shift(level))

    def index(self, address: int, level: int) -> int:
        """The number of an address's entry in its table of a level."""
        return address >> self.shift(level) & self.count(level) - 1

    def start(self, root: int) -> int:
        """Where a top-level table begins, without flags: on a page, or by its own size, where it has less.

        arm64's for 52 bits in pages of 16 KiB has 32 entries; processes' come from a cache (arch/arm64/mm/pgd.c).
        """
        return root & -min(self.page_size, 8 * self.count(self.levels))

    def present(self, level: int) -> tuple[int, int]:
        """Bits of an entry of a level, and what they are in one that the CPU follows."""
        return PRESENT, PRESENT

    def empty(self, entry: int, level: int) -> bool:
        """Whether an entry of a level is what there is before anything was mapped."""
        return entry == 0

    def top(self, root: int, read: Callable[[int, int], bytes]) -> int:
        """The level of a top-level table.

        :param root: its physical address.
        :raises KvmError: why it can't be read.
        """
        return self.levels

    def reaches(self, address: int, top: int) -> bool:
        """Whether tables whose uppermost is of a level translate a canonical address."""
        return True

    @abstractmethod
    def canonical(self, address: int) -> int | None:
        """The address without a tag; None for one that no table can translate."""

    @abstractmethod
    def table(self, entry: int, level: int) -> int | None:
        """The physical address of the table that an entry of a level above 1 points to; None if to none."""

    @abstractmethod
    def frame(self, entry: int, level: int) -> int | None:
        """The physical address of the page that an entry of a level maps; None if it maps none."""

    @abstractmethod
    def allows(self, entry: int, level: int) -> int:
        """What an entry leaves of READ, WRITE and EXECUTE that the kernel may do."""


class PageTables:
    """Page tables of one dump.

    :param read: reads physical memory; raises KvmError with the physical reason.
    """

    def __init__(self, read: Callable[[int, int], bytes], paging: Paging) -> None:
        self._read = read
        self.paging = paging

    def translate(self, root: int, address: int) -> Place:
        """Translate a virtual address.

        :param root: the physical address of the top-level table.
        :raises KvmError: NOT_MAPPED; NOT_PRESENT (metadata ``entry`` holds the page-table entry); or why a table can't
            be read (EXCLUDED, BEYOND_DUMP, SHORT_FILE, CORRUPT_PAGE).
        """
        entry, level = self.last(root, address)
        if level == 1:
            entry = self._entry(entry, address, 1)
        start = self.paging.frame(entry, level)
        if start is None:
            raise absent(address, entry, level, empty=self.paging.empty(entry, level))
        size = 1 << self.paging.shift(level)
        inside = address & (size - 1)
        return Place(start + inside, size - inside)

    def last(self, root: int, address: int) -> tuple[int, int]:
        """Follow the tables down to the last one: (its physical address, 1); or (entry, level) where they end above.

        :raises KvmError: NOT_MAPPED for an address that is not canonical; why a table can't be read.
        """
        plain, table = self.paging.canonical(address), self.paging.start(root)
        if plain is None:
            raise error(Reason.NOT_MAPPED, f"{address:#x} is no canonical address", address=address)
        top = self.paging.top(table, self._read)
        if not self.paging.reaches(plain, top):
            raise absent(address, 0, top, empty=True)
        for level in range(top, 1, -1):
            entry = self._entry(table, plain, level)
            below = self.paging.table(entry, level)
            if below is None:
                return entry, level
            table = below
        return table, 1

    def leaves(self, root: int, start: int) -> Iterator[tuple[int, int, int | None]]:
        """Walk the entries that map a range or don't, from the one that maps ``start`` on, to the end of the space.

        Gives (first address, size, physical address or None); tables that can't be read map nothing.
        """
        paging, at = self.paging, start
        while at < 1 << 64:
            try:
                entry, level = self.last(root, at)
                words = self._table(entry, at) if level == 1 else (entry,)
            except KvmError:  # nothing is known of all that a last table would map, at least
                words, level = (0,), 2
            size = 1 << paging.shift(level)
            at &= -size
            for word in words:
                yield at, size, paging.frame(word, level)
                at += size

    def _table(self, table: int, address: int) -> tuple[int, ...]:
        """The entries of a last table, from that of an address on."""
        first = self.paging.index(address, 1)
        count = self.paging.count(1) - first
        return words(self._read(table + 8 * first, 8 * count), self.paging.order)

    def _entry(self, table: int, address: int, level: int) -> int:
        return number(self._read(table + 8 * self.paging.index(address, level), 8), self.paging.order)


def absent(address: int, entry: int, level: int, *, empty: bool) -> KvmError:
    """Why an entry gives no page."""
    if empty or level > 2:
        return error(Reason.NOT_MAPPED, f"no page is mapped at {address:#x}", address=address)
    message = f"the page at {address:#x} is not in memory (swapped out or migrating)"
    return error(Reason.NOT_PRESENT, message, address=address, entry=f"{entry:#x}", level=level)
