"""Walks of x86-64 page tables: why an address has no memory, and where user memory lies.

Source: Intel SDM volume 3, chapter 4 (4- and 5-level paging); Linux arch/x86/include/asm/pgtable_types.h for
_PAGE_PROTNONE, pgtable.h (pmd_present) and pgtable-invert.h (4.19) for entries that are present to Linux, though not to
the CPU: their address is inverted since the L1TF fix. All reads are physical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmd.errors import KvmError, Reason, error

_PRESENT, _HUGE = 1, 1 << 7
_PROTNONE = 1 << 8  # present to Linux though not to the CPU: PROT_NONE and NUMA-balanced pages
_ADDRESS = ((1 << 52) - 1) & ~0xFFF
KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map


@dataclass(frozen=True, slots=True)
class Place:
    """Where a virtual address lies: its physical address, and how many bytes follow in the same page."""

    physical: int
    length: int


class PageTables:
    """Page tables of one dump.

    :param read: reads physical memory; raises KvmError with the physical reason.
    :param levels: 4 or 5.
    :param encryption: AMD's sme_mask, a bit of entries that is no address.
    :ivar inverted: whether entries that are present to Linux alone have their address inverted.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], levels: int, encryption: int = 0, *, inverted: bool = True
    ) -> None:
        self._read = read
        self.levels = levels
        self.inverted = inverted
        self._mask = _ADDRESS & ~encryption

    def translate(self, root: int, address: int) -> Place:
        """Translate a virtual address.

        :param root: the physical address of the top-level table.
        :raises KvmError: NOT_MAPPED; NOT_PRESENT (metadata ``entry`` holds the page-table entry); or why a table can't
            be read (EXCLUDED, BEYOND_DUMP, SHORT_FILE, CORRUPT_PAGE).
        """
        entry, level = self.last(root, address)
        if level == 1:
            entry = int.from_bytes(self._read(entry + (address >> 12 & 511) * 8, 8), "little")
        start = self.frame(entry, level)
        if start is None:
            raise absent(address, entry, level)
        shift = 12 + 9 * (level - 1)
        inside = address & ((1 << shift) - 1)
        return Place(start + inside, (1 << shift) - inside)

    def last(self, root: int, address: int) -> tuple[int, int]:
        """Follow the tables down to the last one: (its physical address, 1); or (entry, level) where they end above.

        :raises KvmError: NOT_MAPPED for an address that is not canonical; why a table can't be read.
        """
        top = 12 + 9 * self.levels
        sign = address >> (top - 1)
        if sign not in (0, (1 << (65 - top)) - 1):
            raise error(Reason.NOT_MAPPED, f"{address:#x} is no canonical address", address=address)
        table = root & self._mask
        for level in range(self.levels, 1, -1):
            shift = 12 + 9 * (level - 1)
            entry = int.from_bytes(self._read(table + (address >> shift & 511) * 8, 8), "little")
            if not entry & _PRESENT or (level <= 3 and entry & _HUGE):
                return entry, level
            table = entry & self._mask
        return table, 1

    def frame(self, entry: int, level: int) -> int | None:
        """The physical address of the page that an entry of a level maps; None if it maps none."""
        if not entry & _PRESENT:
            seeming = _PROTNONE if level == 1 else _PROTNONE | _HUGE
            if not entry & seeming or level > 3 or (level > 1 and not entry & _HUGE):
                return None
            entry = ~entry if self.inverted else entry
        return entry & self._mask & -(1 << 12 + 9 * (level - 1))


def absent(address: int, entry: int, level: int) -> KvmError:
    """Why an entry gives no page."""
    if entry == 0 or level > 2:
        return error(Reason.NOT_MAPPED, f"no page is mapped at {address:#x}", address=address)
    message = f"the page at {address:#x} is not in memory (swapped out or migrating)"
    return error(Reason.NOT_PRESENT, message, address=address, entry=f"{entry:#x}", level=level)
