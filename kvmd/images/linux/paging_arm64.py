"""Page tables of arm64: pages of 4, 16 or 64 KiB, addresses of 36 to 52 bits, blocks and contiguous pages.

Source: Arm ARM (DDI 0487), chapter D8 (descriptors, LPA and LPA2); Linux arch/arm64/include/asm/pgtable-hwdef.h,
pgtable-prot.h (6.1: PTE_PROT_NONE, PMD_PRESENT_INVALID; since 6.10 PTE_PRESENT_INVALID), memory.h (kimage_voffset,
untagged_addr: user pointers may have a tag in their highest byte, and so have kernel pointers with KASAN).
"""

from __future__ import annotations

from kvmd.images.linux.pagetable import EXECUTE, READ, WRITE, Paging
from kvmd.images.linux.vmcoreinfo import VmcoreInfo, release_of

_VALID, _TABLE = 1, 2  # of an entry of the last level, the second bit must be set, too
# Of a page or block; and of a table, for all below it: AP[2] and PXN, APTable[1] and PXNTable.
_READ_ONLY, _NO_EXECUTE = 1 << 7, 1 << 53
_TABLE_READ_ONLY, _TABLE_NO_EXECUTE = 1 << 62, 1 << 59
_TOP = 0xFF << 56
_SIGN = 1 << 55  # which of the two top-level tables translates an address: the kernel's if set
_ALL = (1 << 64) - 1
_SHIFTS = {4096: 12, 16384: 14, 65536: 16}


class Arm64Paging(Paging):
    """One granule and size of the address space.

    :param bits: how many bits of an address the tables translate.
    :param used: as many of them as the CPU has; fewer where a kernel for 52 bits runs on one without them.
    :param wide: whether physical addresses have 52 bits.
    :param invalid: bits of an entry that is present to Linux though not to the CPU, if one of them is set.
    """

    def __init__(
        self, page_shift: int, bits: int, used: int | None = None, *, wide: bool = False, invalid: int = 1 << 11
    ) -> None:
        super().__init__(page_shift, bits)
        used = used or bits
        self.user_end = 1 << used
        self.kernel = self.bottom = -1 << used & _ALL
        self._wide, self._invalid = wide, invalid
        # 4 KiB pages map blocks from the third level on (1 GiB), others from the second; 52 bits add one.
        self._blocks = (3 if page_shift == 12 else 2) + wide

    def canonical(self, address: int) -> int | None:
        """See :class:`Paging`."""
        plain = address | _TOP if address & _SIGN else address & ~_TOP
        return plain if plain < self.user_end or plain >= self.kernel else None

    def table(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        return self._address(entry) if entry & 3 == _VALID | _TABLE else None

    def frame(self, entry: int, level: int) -> int | None:
        """See :class:`Paging`."""
        if bool(entry & _TABLE) != (level == 1) or level > self._blocks:
            return None
        if not entry & _VALID and not entry & self._invalid:
            return None
        return self._address(entry) & -(1 << self.shift(level))

    def allows(self, entry: int, level: int) -> int:
        """See :class:`Paging`."""
        table = level > 1 and entry & _TABLE
        read_only, no_execute = (_TABLE_READ_ONLY, _TABLE_NO_EXECUTE) if table else (_READ_ONLY, _NO_EXECUTE)
        return READ | (0 if entry & read_only else WRITE) | (0 if entry & no_execute else EXECUTE)

    def _address(self, entry: int) -> int:
        low = entry & -self.page_size
        if not self._wide:
            return low & (1 << 48) - 1
        if self.page_size == 1 << 16:
            return low & (1 << 48) - 1 | (entry >> 12 & 15) << 48
        return low & (1 << 50) - 1 | (entry >> 8 & 3) << 50


def of_kernel(info: VmcoreInfo, page_size: int) -> tuple[Paging, int] | None:
    """The page tables of a kernel, and the physical address of its own top-level table; None if it doesn't tell."""
    top, offset, bits = info.symbol("swapper_pg_dir"), info.number("kimage_voffset"), info.number("VA_BITS")
    shift = _SHIFTS.get(page_size)
    if top is None or offset is None or bits is None or shift is None or not 36 <= bits <= 52:
        return None
    size = info.number("TCR_EL1_T1SZ")
    used = 64 - size if size is not None and 12 <= size <= 64 - 36 else bits
    if page_size < 1 << 16:  # such kernels leave out the upper level where the CPU hasn't 52 bits
        bits = used
    wide = info.number("MAX_PHYSMEM_BITS") == 52 and (page_size == 1 << 16 or used == 52)
    # PTE_PROT_NONE and PMD_PRESENT_INVALID; then one bit for both.
    invalid = 1 << 11 if release_of(info.release) >= (6, 10) else 1 << 58 | 1 << 59
    return Arm64Paging(shift, bits, used, wide=wide, invalid=invalid), top - offset & _ALL
