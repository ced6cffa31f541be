"""The kernel's own code and data as they lie in memory, for those who look for something there without a symbol.

The image is what the kernel's page tables map of one run of physical memory: the same distance lies between virtual and
physical address everywhere (x86-64 phys_base, arm64 kimage_voffset). What was freed after boot is not mapped any more,
or still is, and then holds anybody's data: whatever is found must be checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from kvmd.errors import KvmError
from kvmd.images.base import CHUNK
from kvmd.images.linux.memory import Memory

_LARGEST = 1 << 29  # x86-64's KERNEL_IMAGE_SIZE is 1 GiB at most, 512 MiB without KASLR
_GAP = 1 << 26  # where nothing is mapped for so long, the image has ended
_STEPS = 1 << 18  # entries of page tables
_ALL = (1 << 64) - 1


class KernelImage:
    """The image of one kernel.

    :param start: an address at which it begins, or nearly so: ``_stext``.
    :param distance: virtual less physical address.
    """

    def __init__(self, memory: Memory, start: int, distance: int) -> None:
        self._memory, self._start, self._distance = memory, start, distance

    @cached_property
    def runs(self) -> list[range]:
        """The ranges of virtual addresses that are mapped, ascending."""
        runs: list[range] = []
        at, end = self._start, min(self._start + _LARGEST, 1 << 64)
        for _ in range(_STEPS):
            if at >= end or (at - (runs[-1].stop if runs else self._start) > _GAP):
                break
            size, mapped = self._piece(at)
            if mapped and runs and runs[-1].stop == at:
                runs[-1] = range(runs[-1].start, at + size)
            elif mapped:
                runs.append(range(at, at + size))
            at += size
        return runs

    def _piece(self, at: int) -> tuple[int, bool]:
        """How far the entry goes that maps an address, or maps nothing, and whether it maps the image."""
        tables = self._memory.walkable()
        try:
            place = self._memory.translate(at)
        except KvmError:
            size = tables.paging.page_size
            return size - at % size, False
        return place.length, at - place.physical & _ALL == self._distance & _ALL

    def holds(self, address: int, length: int = 1) -> bool:
        """Whether a range lies in the image whole."""
        return any(run.start <= address and address + length <= run.stop for run in self.runs)

    def find(self, wanted: bytes, align: int = 1) -> Iterator[int]:
        """Give the addresses at which bytes stand, ascending; pages that can't be read are passed over."""
        for run in self.runs:
            held, base = b"", run.start
            for start in range(run.start, run.stop, CHUNK):
                for data in self._readable(start, min(CHUNK, run.stop - start)):
                    if data is None:
                        held = b""
                        continue
                    at, piece = data
                    base, text = at - len(held), held + piece
                    place = text.find(wanted)
                    while place >= 0:
                        if (base + place) % align == 0:
                            yield base + place
                        place = text.find(wanted, place + 1)
                    held = text[len(text) - len(wanted) + 1 :]

    def _readable(self, start: int, length: int) -> Iterator[tuple[int, bytes] | None]:
        """The parts of a range that the image holds; None for a gap."""
        end = start + length
        while start < end:
            try:
                yield start, self._memory.kernel(start, end - start)
                return
            except KvmError as e:
                readable = int(e.metadata.get("readable", "0"))
            if readable:
                yield start, self._memory.kernel(start, readable)
            yield None
            size = self._memory.walkable().paging.page_size
            start = (start + readable & -size) + size


def image_of(memory: Memory, start: int | None) -> KernelImage | None:
    """The image of a kernel; None where its page tables can't be walked.

    :param start: the address of ``_stext``.
    """
    if start is None or memory.tables is None:
        return None
    try:
        place = memory.translate(start)
    except KvmError:
        return None
    return KernelImage(memory, start & -memory.tables.paging.page_size, start - place.physical)
