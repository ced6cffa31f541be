"""What a page-table entry says that is not present: a swap slot, or one of the things that look like one. Pure.

A layout is chosen by architecture and release; which numbers stand for what else, by the options of the kernel that
reserve them, from the highest number down.

Sources, by kernel release: arch/x86/include/asm/pgtable_64.h and pgtable-invert.h (4.19; offsets inverted since L1TF),
arch/arm64/include/asm/pgtable.h (5.10, 5.19, 6.12), arch/s390/include/asm/pgtable.h (6.1), include/linux/swap.h
and swapops.h (5.10 to 6.12).
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from kvmd.images.linux.vmcoreinfo import Release

_WORD = (1 << 64) - 1
_TYPES = 1 << 5  # MAX_SWAPFILES_SHIFT, since 2.6


class Kind(StrEnum):
    """What an entry stands for."""

    SWAP = "swap"
    """A slot of a swap area."""
    MIGRATION = "migration"
    """A page that is being moved: it is where it was until that is done."""
    POISONED = "hwpoison"
    """Memory with a hardware error."""
    DEVICE = "device"
    """Memory of a device, or lent to one."""
    ERROR = "swap error"
    """A page that could not be read back from swap."""
    MARKER = "marker"
    """No page: a note for userfaultfd and the like."""


class Layout(NamedTuple):
    """Where type and offset lie in an entry."""

    type_shift: int
    type_bits: int
    offset_shift: int
    offset_bits: int
    inverted: bool = False

    def decode(self, entry: int) -> tuple[int, int]:
        """The type and the offset of an entry."""
        kind = entry >> self.type_shift & (1 << self.type_bits) - 1
        offset = (~entry if self.inverted else entry) >> self.offset_shift
        return kind, offset & (1 << self.offset_bits) - 1

    def encode(self, kind: int, offset: int) -> int:
        """The entry of a type and an offset, without flags."""
        bits = (~offset if self.inverted else offset) & (1 << self.offset_bits) - 1
        return kind << self.type_shift | bits << self.offset_shift


# Newest first: the release since which it counts.
LAYOUTS: dict[str, tuple[tuple[Release, Layout], ...]] = {
    "x86_64": (
        ((4, 19), Layout(59, 5, 9, 50, inverted=True)),  # __swp_type, __swp_offset: bits 59-63 and ~(9-58)
        ((4, 8), Layout(9, 5, 14, 50)),  # SWP_OFFSET_FIRST_BIT = _PAGE_BIT_PROTNONE + 1
    ),
    "aarch64": (
        ((6, 10), Layout(6, 5, 12, 50)),  # bits 6-10, 12-61: PTE_PRESENT_INVALID took bit 11
        ((5, 19), Layout(3, 5, 8, 50)),  # bits 3-7, 8-57: PG_anon_exclusive took bit 2
        ((3, 11), Layout(2, 6, 8, 50)),  # bits 2-7, 8-57
    ),
    "s390x": (((6, 1), Layout(2, 5, 12, 52)),),  # __SWP_TYPE_SHIFT, __SWP_OFFSET_SHIFT
}


class Options(NamedTuple):
    """The options of a kernel that reserve types."""

    memory_failure: bool = True
    migration: bool = True
    device_private: bool = False
    userfaultfd: bool = True


def _reserved(release: Release, options: Options) -> Iterator[tuple[Kind, int]]:
    """What types are reserved for, and how many: those that follow MAX_SWAPFILES, in order."""
    if options.memory_failure:
        yield Kind.POISONED, 1
    if options.migration:
        yield Kind.MIGRATION, 3 if release >= (5, 19) else 2
    if options.device_private:
        yield Kind.DEVICE, 3 if release >= (6, 15) else 4 if release >= (5, 13) else 2
    if release >= (6, 2) or (release >= (5, 19) and options.userfaultfd):
        yield Kind.MARKER, 1
    if (5, 19) <= release < (6, 2):
        yield Kind.ERROR, 1  # SWP_SWAPIN_ERROR, a marker later


class Absent(NamedTuple):
    """An entry, decoded.

    :ivar offset: of a swap entry the slot, of a migration entry the page frame, of a marker its bits.
    """

    kind: Kind
    type: int
    offset: int


class Decoder:
    """Decodes the entries of one kernel.

    :param machine: a key of :data:`LAYOUTS`.
    :param frame_bits: bits of a page frame's number; above them, migration entries keep flags (since 6.1).
    :param inverted: whether a kernel older than 4.19 was mended of L1TF; None: it was not.
    :raises LookupError: neither machine nor release is known.
    """

    def __init__(
        self, machine: str, release: Release, options: Options, frame_bits: int = 40, mended: bool = False
    ) -> None:
        if mended and machine == "x86_64":
            release_of_layout: Release = max(release, (4, 19))
        else:
            release_of_layout = release
        found = [layout for since, layout in LAYOUTS.get(machine, ()) if release_of_layout >= since]
        if not found:
            raise LookupError(f"{machine} {release[0]}.{release[1]}")
        self.layout = found[0]
        self._frames = (1 << frame_bits) - 1
        kinds = [kind for kind, count in _reserved(release, options) for _ in range(count)]
        self.areas = _TYPES - len(kinds)
        self._special = dict(enumerate(kinds, self.areas))

    def decode(self, entry: int) -> Absent:
        """Decode an entry that is neither present nor zero."""
        number, offset = self.layout.decode(entry)
        kind = self._special.get(number, Kind.SWAP)
        return Absent(kind, number, offset & self._frames if kind is Kind.MIGRATION else offset)


def slot_of(value: int) -> tuple[int, int]:
    """The type and the offset of a swp_entry_t, as swap caches and mappings hold it (SWP_TYPE_SHIFT: 63 - 5)."""
    return value >> 58 & _TYPES - 1, value & (1 << 58) - 1
