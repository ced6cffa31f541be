"""Page tables of s390x: two to five levels, each process's as many as it needs.

Source: z/Architecture Principles of Operation (SA22-7832), chapter 3, "Dynamic Address Translation"; Linux 6.1
arch/s390/include/asm/pgtable.h (entries; an empty one is invalid and nothing else; bits of pages and large pages that
are present to Linux, though not to the CPU), pgalloc.h (crst_table_init: empty entries have their table's type, too).
Tables are always as long as they can be. The kernel's addresses are a space of their own, beginning with 0.
"""

from __future__ import annotations

from collections.abc import Callable

from kvmd.images.linux.order import BIG, number
from kvmd.images.linux.pagetable import EXECUTE, READ, WRITE, Paging
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

_REGION_INVALID, _PAGE_INVALID = 0x20, 0x400  # of segments as of regions
_LARGE = 0x400  # of segments (1 MiB), and regions of the last kind (2 GiB)
_PRESENT = 1  # to Linux: PROT_NONE, and pages whose use is to be noticed
_PROTECT, _NO_EXECUTE = 0x200, 0x100
_TYPE = 0x0C
_ALL = (1 << 64) - 1


class S390xPaging(Paging):
    """The page tables of a kernel and its processes."""

    kernel = bottom = 0
    user_end = 1 << 64
    order = BIG

    def __init__(self) -> None:
        super().__init__(12, 64)
        self.levels, self.entries = 5, 2048

    def shift(self, level: int) -> int:
        """See :class:`Paging`."""
        return 12 if level == 1 else 20 + 11 * (level - 2)

    def count(self, level: int) -> int:
        """See :class:`Paging`."""
        return 256 if level == 1 else 2048

    def present(self, level: int) -> tuple[int, int]:
        """See :class:`Paging`."""
        return (_PAGE_INVALID if level == 1 else _REGION_INVALID), 0

    def top(self, root: int, read: Callable[[int, int], bytes]) -> int:
        """See :class:`Paging`; all entries of a table have its type, which tells its level."""
        return ((number(read(root, 8), BIG) & _TYPE) >> 2) + 2

    def reaches(self, address: int, top: int) -> bool:
        """See :class:`Paging`."""
        return address >> self.shift(top + 1) == 0

    def canonical(self, address: int) -> int | None:
        """See :class:`Paging`."""
        return address

    def empty(self, entry: int, level: int) -> bool:
        """See :class:`Paging`."""
        return entry == _PAGE_INVALID if level == 1 else entry & ~_TYPE == _REGION_INVALID

    def table(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        if entry & _REGION_INVALID or (entry & _TYPE) >> 2 != level - 2 or (level <= 3 and entry & _LARGE):
            return None
        return entry & (-0x800 if level == 2 else -0x1000)

    def frame(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        if level == 1:
            mapped = not entry & _PAGE_INVALID or bool(entry & _PRESENT)
        else:
            mapped = level <= 3 and bool(entry & _LARGE) and (entry & _TYPE) >> 2 == level - 2
        return entry & -(1 << self.shift(level)) if mapped else None

    def allows(self, entry: int, level: int) -> int:
        """See :class:`Paging`."""
        return READ | (0 if entry & _PROTECT else WRITE) | (0 if entry & _NO_EXECUTE else EXECUTE)


def of_kernel(info: VmcoreInfo, _page_size: int) -> tuple[Paging, int] | None:
    """The page tables of a kernel, and the physical address of its own top-level table; None if it doesn't tell."""
    top = info.symbol("swapper_pg_dir")
    if top is None:
        return None
    # Since 6.10 (arch_crash_save_vmcoreinfo) the kernel lies elsewhere than its addresses say.
    linked, lies = info.hexadecimal("KERNELOFFSET"), info.hexadecimal("KERNELOFFPHYS")
    return S390xPaging(), top if linked is None or lies is None else top - linked + lies & _ALL
