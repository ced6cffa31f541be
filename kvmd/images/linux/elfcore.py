"""ELF vmcores (/proc/vmcore, makedumpfile -E, QEMU's dump-guest-memory): physical memory by segment.

Memory of a segment beyond its file size was left out of the dump; the ELF rule of zeroes is for
programs, and no data must come back where the dump has none.
"""

from __future__ import annotations

from bisect import bisect_right

from drgn import FaultError

from kvmd.errors import Reason, error
from kvmd.images.linux import elf
from kvmd.images.linux.source import DumpSource, Source
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

_NOTE_SEGMENTS = 4


class ElfLayout:
    """An ELF core of a kernel.

    :raises KvmError: UNSUPPORTED_FORMAT if it isn't one, NO_VMCOREINFO, TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """

    def __init__(self, source: DumpSource) -> None:
        self._source = source
        head = elf.header(source)
        if head.type != elf.ET_CORE:
            raise error(Reason.UNSUPPORTED_FORMAT, "an ELF file, but not a core dump")
        self.machine = head.machine
        found = elf.segments(source, head)
        self._noted = found
        self.vmcoreinfo = self._vmcoreinfo(source, found)
        self.page_size = VmcoreInfo.parse(self.vmcoreinfo).page_size
        loads = [s for s in found if s.type == elf.PT_LOAD and s.memsz]
        if not loads:
            raise error(Reason.CORRUPT_IMAGE, "the core dump has no memory segments")
        # Segments of /proc/vmcore overlap; the one with data is listed last and wins.
        self._ranges = _flatten(loads)
        self._starts = [start for start, _, _ in self._ranges]

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
    def _vmcoreinfo(source: Source, found: list[elf.Segment]) -> bytes:
        for data in elf.note_data(source, found):
            for name, _, text in elf.notes(data):
                if name == b"VMCOREINFO":
                    return text
        raise error(Reason.NO_VMCOREINFO, "the core dump has no VMCOREINFO note; dump the guest with vmcoreinfo=on")

    def _range(self, address: int) -> tuple[int, int, int | None] | None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address >= self._ranges[index][1]:
            return None
        return self._ranges[index]

    def trouble(self, address: int) -> Reason | None:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        found = self._range(address)
        if found is None:
            return Reason.BEYOND_DUMP
        start, end, offset = found
        if offset is None:
            return Reason.EXCLUDED
        last = min(end, (address | (self.page_size - 1)) + 1)
        return Reason.SHORT_FILE if offset + last - start > self._source.size else None

    def read(self, address: int, length: int, _offset: int, _physical: bool) -> bytes:
        """Read physical memory; the signature is that of drgn's memory segments.

        :raises drgn.FaultError: at the first byte that the file doesn't hold.
        """
        parts: list[bytes] = []
        while length > 0:
            found = self._range(address)
            start, end, offset = found or (0, 0, None)
            if offset is None:
                raise FaultError("the dump does not hold the page", address)
            part = self._source.read(offset + address - start, min(length, end - address))
            if not part:
                raise FaultError("the dump file ends before the page", address)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, address: int, into: memoryview) -> bool:
        """Fill a buffer with physical memory.

        :returns: whether the file holds all of it.
        """
        while len(into):
            start, end, offset = self._range(address) or (0, 0, None)
            if offset is None:
                return False
            done = self._source.read_into(offset + address - start, into[: end - address])
            if not done:
                return False
            address, into = address + done, into[done:]
        return True


def _flatten(loads: list[elf.Segment]) -> list[tuple[int, int, int | None]]:
    """Cut overlapping segments into sorted, disjoint (start, end, file offset or None = left out)."""
    pieces: list[tuple[int, int, int | None]] = []
    for load in loads:
        if load.filesz:
            pieces.append((load.paddr, load.paddr + load.filesz, load.offset))
        if load.memsz > load.filesz:
            pieces.append((load.paddr + load.filesz, load.paddr + load.memsz, None))
    # A piece with data beats one without; sorted by start, what is already covered is cut off.
    result: list[tuple[int, int, int | None]] = []
    for start, end, offset in sorted((p for p in pieces if p[2] is not None), key=lambda p: p[0]):
        low = max(start, result[-1][1]) if result else start
        if low < end and offset is not None:
            result.append((low, end, offset + low - start))
    return _fill(result, sorted((start, end) for start, end, offset in pieces if offset is None))


def _fill(data: list[tuple[int, int, int | None]], holes: list[tuple[int, int]]) -> list[tuple[int, int, int | None]]:
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
