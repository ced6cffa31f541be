"""The swap cache: pages of swap areas that are in memory, too. What is here is newer than what is in the area.

Source: Linux mm/swap.h and mm/swap_state.c: ``swapper_spaces[type]`` is an array of address spaces of 64 MiB each; the
index is the slot's offset, since 6.11 within those 64 MiB. The first page of a folio holds the entry of its first slot.
6.12 has a bitmap of slots beside it that hold zeros and are not written to the area (mm/page_io.c).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import byte_of
from kvmd.images.linux.swap.entry import slot_of
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.xarray import XArrays
from kvmd.images.linux.swapinfo import Area
from kvmd.images.linux.vmcoreinfo import Release

_SPACE_SHIFT = 14  # SWAP_ADDRESS_SPACE_SHIFT
_MASK_SINCE: Release = (6, 11)  # swap_cache_index()
_MOST_OF_FOLIO = 1 << 9  # SWAPFILE_CLUSTER
_SPACES, _NODES = 1 << 8, 1 << 6  # looked through for pages that are cached, and nodes of each
_BLOCK = 512  # bytes of a bitmap that are read at once


class Cache(Protocol):
    """What a kernel has in memory of its swap areas, in whatever way."""

    def forget(self) -> None:
        """Forget what may have changed."""

    def find(self, area: Area, offset: int) -> int | None:
        """The physical address of the page that holds a slot; None if there is none, or it is just being read.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds the cache.
        """

    def zero(self, area: Area, offset: int) -> bool:
        """Whether a slot that is not cached holds zeros, and was never written.

        :raises KvmError: the fault of a page that holds the map.
        """

    def pages(self, area: Area) -> Iterator[tuple[int, int]]:
        """Some of the slots that are cached, each with the address of its struct page, or its folio's first one.

        :raises KvmError: as :meth:`find`.
        """


def folio_page(frames: Frames, page: int, area: Area, offset: int) -> int | None:
    """The physical address of a slot's page; None if it holds nothing yet.

    :param page: the address of the struct page that the cache has for the slot: its own, or its folio's first one.
    :raises KvmError: CORRUPT_DATA if it is another slot's.
    """
    first = frames.read(page)
    owner, start = slot_of(first["private"])
    inside = offset - start
    if owner != area.number or not 0 <= inside < _MOST_OF_FOLIO:
        raise error(Reason.CORRUPT_DATA, "the swap cache holds another slot's page", address=page)
    return frames.physical(frames.after(page, inside)) if frames.ready(first) else None


class SwapCache:
    """The swap cache of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames, xarrays: XArrays, release: Release) -> None:
        self._frames, self._xarrays = frames, xarrays
        self._read, self._number, self._order = kernel.memory.kernel, kernel.memory.number, kernel.memory.order
        self._spaces = kernel.address("swapper_spaces")
        self._counts = kernel.address("nr_swapper_spaces")
        self._space = Fields(kernel.prog, self._read, "struct address_space", {"head": ("i_pages.xa_head",)})
        with kernel.reading("the swap cache"):
            self._stride = kernel.prog.type("struct address_space").size
        self._mask = (1 << _SPACE_SHIFT) - 1 if release >= _MASK_SINCE else -1
        self._heads: dict[tuple[int, int], int] = {}
        self._maps: dict[int, bytes] = {}

    def forget(self) -> None:
        """See :class:`Cache`."""
        self._heads.clear()
        self._maps.clear()

    def find(self, area: Area, offset: int) -> int | None:
        """See :class:`Cache`."""
        key = area.number, offset >> _SPACE_SHIFT
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._head(*key)
        if not head:
            return None
        page, _ = self._xarrays.load(head, offset & self._mask)
        if not page or page & 1:  # a shadow: what is left of a page that went
            return None
        return folio_page(self._frames, page, area, offset)

    def pages(self, area: Area) -> Iterator[tuple[int, int]]:
        """See :class:`Cache`."""
        for space in range(min(-(-area.slots >> _SPACE_SHIFT), _SPACES)):
            base = space << _SPACE_SHIFT if self._mask > 0 else 0
            for page, index in self._xarrays.entries(self._head(area.number, space), _NODES):
                if not page & 1:
                    yield base + index, page

    def zero(self, area: Area, offset: int) -> bool:
        """See :class:`Cache`."""
        if not area.zeromap:
            return False
        block, bit = divmod(offset, 8 * _BLOCK)
        address = area.zeromap + block * _BLOCK
        bits = self._maps.get(address)
        if bits is None:
            size = min(_BLOCK, -(-(area.slots - block * 8 * _BLOCK) // 64) * 8)
            bits = self._maps[address] = self._read(address, size)
        return bool(bits[byte_of(bit, self._order)] >> bit % 8 & 1)

    def _head(self, number: int, space: int) -> int:
        count = self._number(self._counts + 4 * number, 4)
        spaces = self._number(self._spaces + 8 * number)
        if not spaces or space >= count:
            return 0
        found: Any = self._space(spaces + space * self._stride)
        head: int = found["head"]
        return head
