"""A walk over everything that page tables map in the kernel's half of the address space: x86-64, 4 or 5 levels.

Source: Intel SDM volume 3, chapter 4 (entries, and how their bits combine over the levels). The tables are hostile:
docs/adr/0007-page-walk.md says what bounds the walk, and what is listed.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvmd.errors import KvmError, Reason, error

READ, WRITE, EXECUTE = 1, 2, 4
_PRESENT, _WRITABLE, _HUGE, _NO_EXECUTE = 1, 1 << 1, 1 << 7, 1 << 63
_ADDRESS = ((1 << 52) - 1) & ~0xFFF
_TABLES = 1 << 7  # tables kept unpacked, 20 kB each
_BARREN = 1 << 16  # tables remembered to map nothing
_PATIENCE = 1 << 18  # tables in a row that map nothing: 1 GiB of them

Table = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mapping:
    """A page that is mapped: addresses and length in bytes, protection as READ, WRITE and EXECUTE or-ed."""

    virtual: int
    physical: int
    length: int
    protection: int


class PageWalk:
    """One walk. It remembers tables, so each walk takes a new one.

    :param read: reads physical memory; raises KvmError.
    :param root: the physical address of the top-level table.
    :param levels: 4 or 5.
    :param encryption: AMD's sme_mask, a bit of entries that is no address.
    :ivar failure: why the first table that could not be read could not; its address is the first virtual one below it.
    :ivar skipped: how many tables could not be read.
    """

    def __init__(self, read: Callable[[int, int], bytes], root: int, levels: int, encryption: int = 0) -> None:
        self._read = read
        self._mask = _ADDRESS & ~encryption
        self._root = root & self._mask
        self.levels = levels
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._barren: set[tuple[int, int]] = set()
        self._fruitless = 0
        self._found = 0
        self.skipped = 0
        self.failure: KvmError | None = None

    @property
    def bottom(self) -> int:
        """The lowest virtual address of the kernel's half."""
        return (1 << 64) - (1 << 11 + 9 * self.levels)

    def mappings(self, start: int = 0) -> Iterator[Mapping]:
        """List what is mapped from the page that holds ``start`` on, ascending, an entry of a last table each.

        Memory is bounded whatever the tables say; tables that point to each other end with the address space.

        :raises KvmError: CORRUPT_DATA where tables map nothing for too long.
        """
        base = (1 << 64) - (1 << 12 + 9 * self.levels)
        return self._below(self._root, self.levels, base, max(start, self.bottom), READ | WRITE | EXECUTE)

    def physical(self, virtual: int) -> int | None:
        """Translate an address of the kernel's half; None if it isn't mapped, or a table can't be read."""
        table = self._root
        for level in range(self.levels, 0, -1):
            shift = 3 + 9 * level
            try:
                entry = self._entries(table)[virtual >> shift & 511]
            except KvmError:
                return None
            if not entry & _PRESENT:
                return None
            if level == 1 or (level <= 3 and entry & _HUGE):
                return (entry & self._mask & -(1 << shift)) + (virtual & (1 << shift) - 1)
            table = entry & self._mask
        return None

    def _below(self, table: int, level: int, base: int, start: int, allowed: int) -> Iterator[Mapping]:
        """Walk a table that maps the addresses from ``base`` on; ``allowed`` is what the tables above allow."""
        entries = self._visit(table, base)
        if entries is None:
            return
        shift = 3 + 9 * level
        first, found, skipped = max(start - base, 0) >> shift, self._found, self.skipped
        for index in range(first, 512):
            entry = entries[index]
            if not entry & _PRESENT:
                continue
            at = base + (index << shift)
            protection = allowed & ~((0 if entry & _WRITABLE else WRITE) | (EXECUTE if entry & _NO_EXECUTE else 0))
            if level == 1 or (level <= 3 and entry & _HUGE):
                self._found, self._fruitless = self._found + 1, 0
                yield Mapping(at, entry & self._mask & -(1 << shift), 1 << shift, protection)
            elif (level - 1, entry & self._mask) not in self._barren:
                yield from self._below(entry & self._mask, level - 1, at, start, protection)
        if first == 0 and (found, skipped) == (self._found, self.skipped) and len(self._barren) < _BARREN:
            self._barren.add((level, table))

    def _visit(self, table: int, base: int) -> Table | None:
        self._fruitless += 1
        if self._fruitless > _PATIENCE:
            raise error(Reason.CORRUPT_DATA, "the kernel's page tables map nothing, without end", address=base)
        try:
            return self._entries(table)
        except KvmError as e:
            self.skipped += 1
            words = {key: value for key, value in e.metadata.items() if key not in ("address", "readable")}
            address = max(base, self.bottom)
            self.failure = self.failure or error(e.reason, e.message, address=address, **words)
            return None

    def _entries(self, table: int) -> Table:
        found = self._tables.get(table)
        if found is None:
            found = struct.unpack("<512Q", self._read(table, 4096))
            if len(self._tables) >= _TABLES:
                self._tables.popitem(last=False)
            self._tables[table] = found
        else:
            self._tables.move_to_end(table)
        return found


def incomplete(first: KvmError, skipped: int) -> KvmError:
    """What ends a walk that had to pass over tables.

    :param first: why the first can't be read, with the first virtual address that it would map.
    """
    message = f"all else is listed, but {skipped} page tables can't be read, the first because {first.message}"
    return error(first.reason, message, **(first.metadata | {"address": first.address, "skipped": skipped}))
