"""The swap cache of newer kernels (6.18): a table of a word for each slot of a cluster, in place of the XArrays.

Source: Linux mm/swap_table.h and mm/swap.h, 7.2: a word with the lowest bit is a slot that is not cached, one that ends
in 10 has the frame of the folio's first page, in 6.18 one that ends in 000 its address. At the top is the count of
users, and below it, unless the cluster or the area has a bitmap of its own, a bit for slots that hold zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import byte_of
from kvmd.images.linux.swap.cache import folio_page
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swapinfo import Area

_CLUSTER = 1 << 9  # SWAPFILE_CLUSTER with huge pages of 2 MiB
_FLAGS = 5  # SWP_TB_FLAGS_BITS
_ZERO = 1 << 64 - _FLAGS  # SWP_TB_ZERO_FLAG
_BAD = (1 << 64) - 8  # SWP_TB_BAD
_REMEMBERED = 1 << 8
_LOOKED = 1 << 18  # slots looked through for pages that are cached


class SwapTables:
    """The swap tables of one kernel, as a :class:`~kvmd.images.linux.swap.cache.Cache`.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames) -> None:
        self._frames, self._memory = frames, kernel.memory
        wanted = {name: (name,) for name in ("table", "zero_bitmap", "extend_table")}
        self._cluster = Fields(kernel.prog, kernel.memory.kernel, "struct swap_cluster_info", wanted)
        with kernel.reading("the swap tables"):
            self._stride = kernel.prog.type("struct swap_cluster_info").size
        self._by_frame = "extend_table" in self._cluster.offsets  # as old as counts and frames in the table
        self._tables: dict[int, tuple[int, ...]] = {}

    def forget(self) -> None:
        """See :class:`~kvmd.images.linux.swap.cache.Cache`."""
        self._tables.clear()

    def _word(self, area: Area, offset: int) -> tuple[int, dict[str, Any]]:
        """A slot's word, and its cluster."""
        cluster: Any = self._cluster(area.clusters + offset // _CLUSTER * self._stride)
        if not cluster["table"]:
            return 0, cluster
        words = self._tables.get(cluster["table"])
        if words is None:
            if len(self._tables) >= _REMEMBERED:
                self._tables.clear()
            words = self._memory.words(cluster["table"], _CLUSTER)
            self._tables[cluster["table"]] = words
        return words[offset % _CLUSTER], cluster

    def _page(self, word: int) -> int:
        """The struct page of a word; 0 if the slot is not cached."""
        if word & 1 or word in (0, _BAD):
            return 0
        if word & 3 == 2 and self._by_frame:
            return self._frames.page((word & _ZERO - 1) >> 2)
        if word & 7 == 0 and not self._by_frame:
            return word
        raise error(Reason.UNSUPPORTED, f"the swap table's word {word:#x} is of a kind that is not known")

    def find(self, area: Area, offset: int) -> int | None:
        """See :class:`~kvmd.images.linux.swap.cache.Cache`."""
        word, _ = self._word(area, offset)
        if word == _BAD or (word == 0 and self._by_frame):
            raise error(Reason.CORRUPT_DATA, f"slot {offset} of swap area {area.number} is not in use")
        page = self._page(word)
        return folio_page(self._frames, page, area, offset) if page else None

    def pages(self, area: Area) -> Iterator[tuple[int, int]]:
        """See :class:`~kvmd.images.linux.swap.cache.Cache`."""
        for first in range(0, min(area.slots, _LOOKED), _CLUSTER):
            word, cluster = self._word(area, first)
            words = self._tables.get(cluster["table"], (word,))
            for index, each in enumerate(words):
                if page := self._page(each):
                    yield first + index, page

    def zero(self, area: Area, offset: int) -> bool:
        """See :class:`~kvmd.images.linux.swap.cache.Cache`."""
        bitmap, bit = area.zeromap, offset
        if not bitmap and self._by_frame:
            word, cluster = self._word(area, offset)
            if not cluster["zero_bitmap"]:
                return cluster["zero_bitmap"] is None and bool(word & _ZERO)
            bitmap, bit = cluster["zero_bitmap"], offset % _CLUSTER
        place = bitmap + byte_of(bit, self._memory.order)
        return bool(bitmap) and bool(self._memory.kernel(place, 1)[0] >> bit % 8 & 1)
