"""Page tables of x86-64.

Source: Intel SDM volume 3, chapter 4 (4- and 5-level paging); Linux arch/x86/include/asm/pgtable_types.h for
_PAGE_PROTNONE, pgtable.h (pmd_present) and pgtable-invert.h (4.19) for entries that are present to Linux, though not to
the CPU: their address is inverted since the L1TF fix.
"""

from __future__ import annotations

from kvmd.images.linux.pagetable import EXECUTE, PRESENT, READ, WRITE, Paging
from kvmd.images.linux.vmcoreinfo import VmcoreInfo, release_of

_WRITABLE, _HUGE, _NO_EXECUTE = 1 << 1, 1 << 7, 1 << 63
_PROTNONE = 1 << 8  # present to Linux though not to the CPU: PROT_NONE and NUMA-balanced pages
_ADDRESS = ((1 << 52) - 1) & ~0xFFF
KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map


class X86Paging(Paging):
    """4 or 5 levels.

    :param encryption: AMD's sme_mask, a bit of entries that is no address.
    :param inverted: whether entries that are present to Linux alone have their address inverted.
    """

    kernel = 0  # its tables map the lower half, too, for a while

    def __init__(self, levels: int, encryption: int = 0, *, inverted: bool = True) -> None:
        super().__init__(12, 12 + 9 * levels)
        self.user_end = 1 << 11 + 9 * levels
        self.bottom = (1 << 64) - self.user_end
        self._mask = _ADDRESS & ~encryption
        self._inverted = inverted

    def canonical(self, address: int) -> int | None:
        """See :class:`Paging`."""
        return address if address < self.user_end or address >= (1 << 64) - self.user_end else None

    def table(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        if not entry & PRESENT or (level <= 3 and entry & _HUGE):
            return None
        return entry & self._mask

    def frame(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        if not entry & PRESENT:
            seeming = _PROTNONE if level == 1 else _PROTNONE | _HUGE
            if not entry & seeming or level > 3 or (level > 1 and not entry & _HUGE):
                return None
            entry = ~entry if self._inverted else entry
        return entry & self._mask & -(1 << self.shift(level))

    def allows(self, entry: int, level: int) -> int:
        """See :class:`Paging`."""
        return READ | (WRITE if entry & _WRITABLE else 0) | (0 if entry & _NO_EXECUTE else EXECUTE)


def of_kernel(info: VmcoreInfo, _page_size: int) -> tuple[Paging, int] | None:
    """The page tables of a kernel, and the physical address of its own top-level table; None if it doesn't tell."""
    top, base = info.symbol("swapper_pg_dir"), info.number("phys_base")
    if top is None or base is None:
        return None
    levels = 5 if info.number("pgtable_l5_enabled") else 4
    mended = info.release == "" or release_of(info.release) >= (4, 19)
    return X86Paging(levels, info.number("sme_mask") or 0, inverted=mended), top - KERNEL_MAP + base
