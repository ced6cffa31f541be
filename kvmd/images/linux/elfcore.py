"""ELF vmcores (/proc/vmcore, makedumpfile -E, QEMU's dump-guest-memory): physical memory by segment.

Memory of a segment beyond its file size was left out of the dump; the ELF rule of zeroes is for
programs, and no data must come back where the dump has none.
"""

from __future__ import annotations

from bisect import bisect_right

from kvmd.errors import Reason, error
from kvmd.images.linux import elf
from kvmd.images.linux.order import Order
from kvmd.images.linux.segments import Piece, Segments
from kvmd.images.linux.source import DumpSource, Source
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

_NOTE_SEGMENTS = 4


class ElfLayout(Segments):
    """An ELF core of a kernel.

    :raises KvmError: UNSUPPORTED_FORMAT if it isn't one, TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """

    def __init__(self, source: DumpSource) -> None:
        head = elf.header(source)
        if head.type != elf.ET_CORE:
            raise error(Reason.UNSUPPORTED_FORMAT, "an ELF file, but not a core dump")
        self.machine, self.order = head.machine, head.order
        found = elf.segments(source, head)
        self._noted = found
        self.vmcoreinfo = self._vmcoreinfo(source, found, head.order)
        self.page_size = VmcoreInfo.parse(self.vmcoreinfo).page_size
        loads = [s for s in found if s.type == elf.PT_LOAD and s.memsz]
        if not loads:
            raise error(Reason.CORRUPT_IMAGE, "the core dump has no memory segments")
        # Segments of /proc/vmcore overlap; the one with data is listed last and wins.
        super().__init__(source, _flatten(loads))

    @property
    def notes(self) -> bytes:
        """See :class:`~kvmd.images.linux.layout.Layout`; those of the first segments that have any."""
        noted = [segment for segment in self._noted if segment.type == elf.PT_NOTE]
        return b"".join(elf.note_data(self._source, noted[:_NOTE_SEGMENTS]))

    @property
    def format(self) -> str:
        """Always ``elf``."""
        return "elf"

    @staticmethod
    def _vmcoreinfo(source: Source, found: list[elf.Segment], order: Order) -> bytes:
        for data in elf.note_data(source, found):
            for name, _, text in elf.notes(data, order):
                if name == b"VMCOREINFO":
                    return text
        return b""


def _flatten(loads: list[elf.Segment]) -> list[Piece]:
    """Cut overlapping segments into sorted, disjoint (start, end, file offset or None = left out)."""
    pieces: list[Piece] = []
    for load in loads:
        if load.filesz:
            pieces.append((load.paddr, load.paddr + load.filesz, load.offset))
        if load.memsz > load.filesz:
            pieces.append((load.paddr + load.filesz, load.paddr + load.memsz, None))
    # A piece with data beats one without; sorted by start, what is already covered is cut off.
    result: list[Piece] = []
    for start, end, offset in sorted((p for p in pieces if p[2] is not None), key=lambda p: p[0]):
        low = max(start, result[-1][1]) if result else start
        if low < end and offset is not None:
            result.append((low, end, offset + low - start))
    return _fill(result, sorted((start, end) for start, end, offset in pieces if offset is None))


def _fill(data: list[Piece], holes: list[tuple[int, int]]) -> list[Piece]:
    """Add what the holes cover and the data don't."""
    starts = [start for start, _, _ in data]
    result = list(data)
    covered = 0
    for low, high in holes:
        at = max(low, covered)
        covered = max(covered, high)
        index = max(bisect_right(starts, at) - 1, 0)
        while at < high:
            while index < len(data) and data[index][1] <= at:
                index += 1
            start, end, _ = data[index] if index < len(data) else (high, high, None)
            if start > at:
                result.append((at, min(start, high), None))
            at = max(at, end)
    return sorted(result, key=lambda piece: piece[0])
