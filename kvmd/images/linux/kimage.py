"""The kernel's own code and data as they lie in memory, for those who look for something there without a symbol.

The image is what the kernel's page tables map of one run of physical memory: the same distance lies between virtual and
physical address everywhere (x86-64 phys_base, arm64 kimage_voffset). What was freed after boot is not mapped any more,
or still is, and then holds anybody's data: whatever is found must be checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice

from kvmd.errors import KvmError
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.pagetable import WRITE
from kvmd.images.linux.scan.search import search
from kvmd.images.linux.walk import PageWalk

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
        end = self._start
        for at, size, physical in islice(self._memory.leaves(self._start), _STEPS):
            if at - end > _GAP or at >= self._start + _LARGEST:
                break
            if physical is None or at - physical & _ALL != self._distance & _ALL:
                continue
            if runs and runs[-1].stop == at:
                runs[-1] = range(runs[-1].start, at + size)
            else:
                runs.append(range(max(at, self._start), at + size))
            end = at + size
        return runs

    def holds(self, address: int, length: int = 1) -> bool:
        """Whether a range lies in the image whole."""
        return any(run.start <= address and address + length <= run.stop for run in self.runs)

    def constant(self, address: int, length: int) -> bool:
        """Whether a range is of the image whole, and nobody may write there, so that it is as it was built.

        Pages of the image that were freed can be written by whoever has them.
        """
        at, tables = address, self._memory.walkable()
        walk = PageWalk(self._memory.physical, self._memory.root, tables.paging)
        try:
            for mapping in walk.mappings(address):
                same = mapping.virtual - mapping.physical & _ALL == self._distance & _ALL
                if mapping.virtual > at or mapping.protection & WRITE or not same:
                    return False
                at = mapping.virtual + mapping.length
                if at >= address + length:
                    return True
        except KvmError:  # tables that make no sense
            return False
        return False

    def find(self, wanted: bytes, align: int = 1) -> Iterator[int]:
        """Give the addresses at which bytes stand, ascending; pages that can't be read are passed over."""
        size = self._memory.walkable().paging.page_size
        places = (at for _, at in search(self._memory.attempt, self.runs, (wanted,), size))
        return (at for at in places if at % align == 0)


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
