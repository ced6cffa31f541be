"""Page tables: one address through them, and what kept it from its page.

Sources: Intel SDM volume 3, chapter 4 (4-level paging); Arm ARM, D8 (VMSAv8-64 translation tables, TCR_EL1.TG1, T1SZ).
What bits count is what NetBSD's and FreeBSD's libkvm look at, no more: they check neither that an address is canonical
nor whose half it is in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvmd.errors import KvmError

Word = Callable[[int], int]
"""Reads an entry of a table, by its physical address; raises KvmError."""

_PRESENT, _LARGE = 1, 0x80
_FRAMES = {1: 0x000FFFFFFFFFF000, 2: 0x000FFFFFFFE00000, 3: 0x000FFFFFC0000000}
_PAGE_SHIFTS = {1: 14, 2: 12, 3: 16}  # TCR_EL1.TG1: granules of 16, 4 and 64 KiB
_OUTPUT = (1 << 48) - 1


class NoTranslation(Exception):  # noqa: N818 - an outcome; every caller makes it a KvmError of its own format
    """An address has no translation.

    :ivar level: of the entry at fault: 1 is that of pages; less, none.
    :ivar cause: why the entry can't be read; None: it is not valid.
    """

    def __init__(self, level: int, cause: KvmError | None = None) -> None:
        super().__init__(level, cause)
        self.level = level
        self.cause = cause


class Target(NamedTuple):
    """Where an address leads: the physical address, how many bytes are left of the page, and the page's level."""

    physical: int
    left: int
    level: int


def amd64(word: Word, root: int, address: int) -> Target:
    """Translate through four levels.

    :raises NoTranslation: levels are 4 (PML4) to 1.
    """
    table = root
    for level in range(4, 0, -1):
        shift = 3 + 9 * level
        entry = _entry(word, table + (address >> shift & 511) * 8, level)
        if not entry & _PRESENT:
            raise NoTranslation(level)
        if level == 1 or (level < 4 and entry & _LARGE):
            inside = address & (1 << shift) - 1
            return Target((entry & _FRAMES[level]) + inside, (1 << shift) - inside, level)
        table = entry & _FRAMES[1]
    raise NoTranslation(0)


def aarch64(word: Word, tcr: int, root: int, address: int) -> Target:
    """Translate through the tables of the kernel's half.

    :param tcr: TCR_EL1, which tells the granule and the size of the half.
    :raises NoTranslation: level 0 where the address is not of that half, -1 where TCR_EL1 makes no sense.
    """
    shift, bits = _PAGE_SHIFTS.get(tcr >> 30 & 3, 0), 64 - (tcr >> 16 & 63)
    if address >> 48 != 0xFFFF:
        raise NoTranslation(0)
    if not shift or not shift < bits <= 48:
        raise NoTranslation(-1)
    stride = shift - 3
    levels = -(-(bits - shift) // stride)
    address &= (1 << bits) - 1
    table = root & _OUTPUT
    for level in range(levels, 0, -1):
        low = shift + stride * (level - 1)
        width = min(stride, bits - low)
        entry = _entry(word, table + (address >> low & (1 << width) - 1) * 8, level)
        if not entry & _PRESENT:
            raise NoTranslation(level)
        output = entry & _OUTPUT & -(1 << shift)
        if level == 1 or not entry & 2:
            inside = address & (1 << low) - 1
            return Target((output & -(1 << low)) + inside, (1 << low) - inside, level)
        table = output
    raise NoTranslation(-1)


def _entry(word: Word, at: int, level: int) -> int:
    try:
        return word(at)
    except KvmError as e:
        raise NoTranslation(level, e) from e
