"""Shared memory (tmpfs, SysV, anonymous): pages that no page-table entry points to, for they belong to a file.

Source: Linux mm/shmem.c: an address_space with ``shmem_aops`` holds pages, and as values the entries of those that were
swapped out (swp_to_radix_entry), one for each page, or since 6.12 one for several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.mappings import Mapping, Mappings
from kvmd.images.linux.swap.chain import Slot
from kvmd.images.linux.swap.entry import slot_of
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.xarray import XArrays, value

_TAIL = 1  # of page->compound_head
_MOST_OF_FOLIO = 1 << 18  # pages of 1 GiB


class Shared:
    """The shared memory of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames, xarrays: XArrays) -> None:
        self._frames, self._xarrays = frames, xarrays
        self._physical, read = kernel.memory.physical, kernel.memory.kernel
        self._mappings = Mappings(kernel)
        found = kernel.builtin("shmem_aops")
        self._operations = found.value if found else 0
        self._file = Fields(kernel.prog, read, "struct file", {"mapping": ("f_mapping",)})
        wanted = {"head": ("i_pages.xa_head",), "operations": ("a_ops",)}
        self._space = Fields(kernel.prog, read, "struct address_space", wanted)
        self._last: tuple[int, Mapping | None] = (0, None)

    def forget(self) -> None:
        """Forget the mapping that was looked at last, which may have changed."""
        self._last = 0, None

    def page(self, mm: int, address: int, swapped: Callable[[list[Slot]], Iterator[bytes]]) -> bytes:
        """Read the page at a user address that the page tables have nothing for.

        :param swapped: reads swap slots.
        :raises KvmError: NOT_MAPPED if there is no such page; what ``swapped`` raises, and the fault of a page.
        """
        index, space = self._place(mm, address)
        if space is None or not self._operations or space["operations"] != self._operations:
            raise error(Reason.NOT_MAPPED, f"no page is mapped at {address:#x}", address=address)
        entry, base = self._xarrays.load(space["head"], index)
        if not entry:
            raise error(Reason.NOT_MAPPED, f"no page of the shared memory at {address:#x} was ever used")
        out = value(entry)
        if out is not None:
            number, offset = slot_of(out)
            return b"".join(swapped([(number, offset + index - base)]))
        return self._physical(self._resident(entry, index), self._frames.page_size)

    def _place(self, mm: int, address: int) -> tuple[int, dict[str, Any] | None]:
        """Which page of which address_space an address is."""
        owner, mapping = self._last
        if owner != mm or mapping is None or not mapping.start <= address < mapping.end:
            mapping = self._mappings.find(mm, address)
            self._last = mm, mapping
        if mapping is None or not mapping.file:
            return 0, None
        file: Any = self._file(mapping.file)
        space: Any = self._space(file["mapping"])
        return mapping.first + (address - mapping.start) // self._frames.page_size, space

    def _resident(self, page: int, index: int) -> int:
        first = self._frames.read(page)
        if first["head"] & _TAIL:
            page = first["head"] - _TAIL
            first = self._frames.read(page)
        inside = index - first["index"]
        if not 0 <= inside < _MOST_OF_FOLIO:
            raise error(Reason.CORRUPT_DATA, "shared memory holds another file's page", address=page)
        if not self._frames.ready(first):
            raise error(Reason.NOT_PRESENT, "the page of shared memory is just being read from swap")
        return self._frames.physical(self._frames.after(page, inside))
