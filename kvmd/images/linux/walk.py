"""A walk over everything that page tables map in the kernel's half of the address space.

What entries mean, and how their bits combine over the levels, is the architecture's. The tables are hostile:
docs/adr/0007-page-walk.md says what bounds the walk, and what is listed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.order import words
from kvmd.images.linux.pagetable import EXECUTE, READ, WRITE, Paging

_ENTRIES = 1 << 16  # of tables kept unpacked, 40 bytes each
_BARREN = 1 << 16  # tables remembered to map nothing
_PATIENCE = 1 << 18  # tables of 4 KiB in a row that map nothing: 1 GiB of them

Table = tuple[int, ...]


class Mapping(NamedTuple):
    """A page that is mapped: addresses and length in bytes, protection as READ, WRITE and EXECUTE or-ed."""

    virtual: int
    physical: int
    length: int
    protection: int


class PageWalk:
    """One walk. It remembers tables, so each walk takes a new one.

    :param read: reads physical memory; raises KvmError.
    :param root: the physical address of the top-level table.
    :ivar failure: why the first table that could not be read could not; its address is the first virtual one below it.
    :ivar skipped: how many tables could not be read.
    """

    def __init__(self, read: Callable[[int, int], bytes], root: int, paging: Paging) -> None:
        self._read, self._root, self.paging = read, paging.start(root), paging
        self._kept = max(_ENTRIES // paging.entries, 1)
        self._patience = _PATIENCE * 4096 // paging.page_size
        self._tables: OrderedDict[tuple[int, int], Table] = OrderedDict()
        self._barren: set[tuple[int, int]] = set()
        self._fruitless = 0
        self._found = 0
        self.skipped = 0
        self.failure: KvmError | None = None

    def mappings(self, start: int = 0) -> Iterator[Mapping]:
        """List what is mapped from the page that holds ``start`` on, ascending, an entry of a last table each.

        Memory is bounded whatever the tables say; tables that point to each other end with the address space.

        :raises KvmError: CORRUPT_DATA where tables map nothing for too long.
        """
        first = max(start, self.paging.bottom)
        return self._below(self._root, self._top, self.paging.base, first, READ | WRITE | EXECUTE)

    @cached_property
    def _top(self) -> int:
        """The level of the top-level table."""
        try:
            return self.paging.top(self._root, self._read)
        except KvmError:  # which reading the table will raise again
            return self.paging.levels

    def physical(self, virtual: int) -> int | None:
        """Translate an address of the kernel's half; None if it isn't mapped, or a table can't be read."""
        table, paging = self._root, self.paging
        for level in range(self._top if paging.reaches(virtual, self._top) else 0, 0, -1):
            try:
                entry = self._entries(table, level)[paging.index(virtual, level)]
            except KvmError:
                return None
            bits, present = paging.present(level)
            if entry & bits != present:
                return None
            lower = paging.table(entry, level) if level > 1 else None
            if lower is None:
                frame = paging.frame(entry, level)
                return None if frame is None else frame + (virtual & (1 << paging.shift(level)) - 1)
            table = lower
        return None

    def _below(self, table: int, level: int, base: int, start: int, allowed: int) -> Iterator[Mapping]:
        """Walk a table that maps the addresses from ``base`` on; ``allowed`` is what the tables above allow."""
        entries = self._visit(table, level, base)
        if entries is None:
            return
        paging, shift = self.paging, self.paging.shift(level)
        bits, present = paging.present(level)
        first, found, skipped = max(start - base, 0) >> shift, self._found, self.skipped
        for index in range(first, paging.count(level)):
            entry = entries[index]
            if entry & bits != present:
                continue
            at, protection = base + (index << shift), allowed & paging.allows(entry, level)
            lower = paging.table(entry, level) if level > 1 else None
            leaf = paging.frame(entry, level) if lower is None else None
            if leaf is not None:
                self._found, self._fruitless = self._found + 1, 0
                yield Mapping(at, leaf, 1 << shift, protection)
            elif lower is not None and (level - 1, lower) not in self._barren:
                yield from self._below(lower, level - 1, at, start, protection)
        if first == 0 and (found, skipped) == (self._found, self.skipped) and len(self._barren) < _BARREN:
            self._barren.add((level, table))

    def _visit(self, table: int, level: int, base: int) -> Table | None:
        self._fruitless += 1
        if self._fruitless > self._patience:
            raise error(Reason.CORRUPT_DATA, "the kernel's page tables map nothing, without end", address=base)
        try:
            return self._entries(table, level)
        except KvmError as e:
            self.skipped += 1
            known = {key: value for key, value in e.metadata.items() if key not in ("address", "readable")}
            address = max(base, self.paging.bottom)
            self.failure = self.failure or error(e.reason, e.message, address=address, **known)
            return None

    def _entries(self, table: int, level: int) -> Table:
        found = self._tables.get((table, level))
        if found is None:
            found = words(self._read(table, 8 * self.paging.count(level)), self.paging.order)
            if len(self._tables) >= self._kept:
                self._tables.popitem(last=False)
            self._tables[table, level] = found
        else:
            self._tables.move_to_end((table, level))
        return found


def incomplete(first: KvmError, skipped: int) -> KvmError:
    """What ends a walk that had to pass over tables.

    :param first: why the first can't be read, with the first virtual address that it would map.
    """
    message = f"all else is listed, but {skipped} page tables can't be read, the first because {first.message}"
    return error(first.reason, message, **(first.metadata | {"address": first.address, "skipped": skipped}))
