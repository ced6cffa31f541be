"""Walks of x86-64 page tables: why an address has no memory, and where user memory lies.

Source: Intel SDM volume 3, chapter 4 (4- and 5-level paging); Linux arch/x86/include/asm/pgtable_types.h for
_PAGE_PROTNONE. All reads are physical.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kvmd.errors import Reason, error

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
    """

    def __init__(self, read: Callable[[int, int], bytes], levels: int, encryption: int = 0) -> None:
        self._read = read
        self.levels = levels
        self._mask = _ADDRESS & ~encryption

    def translate(self, root: int, address: int) -> Place:
        """Translate a virtual address.

        :param root: the physical address of the top-level table.
        :raises KvmError: NOT_MAPPED; NOT_PRESENT (metadata ``entry`` holds the page-table entry); or why a table can't
            be read (EXCLUDED, BEYOND_DUMP, SHORT_FILE, CORRUPT_PAGE).
        """
        top = 12 + 9 * self.levels
        sign = address >> (top - 1)
        if sign not in (0, (1 << (65 - top)) - 1):
            raise error(Reason.NOT_MAPPED, f"{address:#x} is no canonical address", address=address)
        table = root & self._mask
        for level in range(self.levels, 0, -1):
            shift = 12 + 9 * (level - 1)
            entry = int.from_bytes(self._read(table + (address >> shift & 511) * 8, 8), "little")
            leaf = level == 1 or (level <= 3 and entry & _HUGE and entry & (_PRESENT | _PROTNONE))
            if not entry & _PRESENT and not (leaf and entry & _PROTNONE):
                raise self._absent(address, entry, level)
            if leaf:
                inside = address & ((1 << shift) - 1)
                return Place((entry & self._mask & -(1 << shift)) + inside, (1 << shift) - inside)
            table = entry & self._mask
        raise AssertionError("the last level is a leaf")

    @staticmethod
    def _absent(address: int, entry: int, level: int) -> Exception:
        if entry == 0 or level > 2:
            return error(Reason.NOT_MAPPED, f"no page is mapped at {address:#x}", address=address)
        message = f"the page at {address:#x} is not in memory (swapped out or migrating)"
        return error(Reason.NOT_PRESENT, message, address=address, entry=f"{entry:#x}", level=level)
