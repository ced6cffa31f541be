"""zswap: pages that were on their way to a swap area, and are still in memory, compressed.

Source: Linux mm/zswap.c: ``zswap_trees[type]`` is a red-black tree by offset (to 6.7), an array of them of 64 MiB each
(6.8, 6.9), or an array of XArrays (since 6.10). An entry without length is a page of one word (until 6.11);
since 6.18 one of a page's length is not compressed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.swap.codecs import decompress
from kvmd.images.linux.swap.entry import slot_of
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.rbtree import Record, search
from kvmd.images.linux.swap.xarray import XArrays
from kvmd.images.linux.swap.zpool import Pools

_SPACE_SHIFT = 14  # SWAP_ADDRESS_SPACE_SHIFT
_AREAS = 1 << 5
_ENTRY = {
    "left": ("rbnode.rb_left",),
    "right": ("rbnode.rb_right",),
    "offset": ("offset", "swpentry.val"),
    "length": ("length",),
    "pool": ("pool",),
    "handle": ("handle",),
}
_POOL = {"zpool": ("zs_pool", "zpool", "zpools.0"), "name": ("tfm_name",)}


class Zswap:
    """What zswap of one kernel holds; a kernel without it holds nothing.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames, xarrays: XArrays) -> None:
        self._page, self._xarrays = frames.page_size, xarrays
        self._read, self._number, self._order = kernel.memory.kernel, kernel.memory.number, kernel.memory.order
        found = kernel.builtin("zswap_trees")
        self._trees = found.value if found else 0
        self._heads: dict[tuple[int, int], int] = {}
        if not self._trees:
            return
        prog = kernel.prog
        self._entry = Fields(prog, self._read, "struct zswap_entry", _ENTRY)
        self._pool = Fields(prog, self._read, "struct zswap_pool", _POOL)
        self._by_node = "left" in self._entry.offsets
        tag, head = ("struct zswap_tree", "rbroot.rb_node") if self._by_node else ("struct xarray", "xa_head")
        self._tree = Fields(prog, self._read, tag, {"head": (head,)})
        with kernel.reading("zswap's structures"):
            self._stride = prog.type(tag).size
        self._counts = kernel.builtin("nr_zswap_trees")
        self._pools = Pools(kernel, frames)

    def forget(self) -> None:
        """Forget where the trees begin, which may have changed."""
        self._heads.clear()

    def find(self, number: int, offset: int) -> bytes | None:
        """The page of a slot; None if zswap hasn't got it.

        :raises KvmError: NOT_PRESENT for a compressor that isn't known, CORRUPT_PAGE, CORRUPT_DATA, UNSUPPORTED, or the
            fault of a page that holds it.
        """
        entry = self._entry_of(number, offset)
        if entry is None:
            return None
        if not entry["length"]:
            return struct.pack(self._order + "Q", entry["handle"]) * (self._page // 8)
        pool: Any = self._pool(entry["pool"])
        data = self._pools.read(pool["zpool"], entry["handle"], entry["length"])
        if len(data) == self._page and self._pools.raw:
            return data
        name = pool["name"].split(b"\0")[0].decode("ascii", "replace")
        return decompress("zswap", name, data, self._page)

    def has(self, number: int, offset: int) -> bool:
        """Whether there is an entry of a slot.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds the tree.
        """
        return self._entry_of(number, offset) is not None

    def _entry_of(self, number: int, offset: int) -> Record | None:
        if not self._trees:
            return None
        key = number, offset >> _SPACE_SHIFT
        head = self._heads.get(key)
        if head is None:
            head = self._heads[key] = self._head(*key)
        return self._find(head, number, offset) if head else None

    def _head(self, number: int, space: int) -> int:
        if number >= _AREAS:
            raise error(Reason.CORRUPT_DATA, f"there is no swap area {number}")
        tree = self._number(self._trees + 8 * number)
        if self._counts is None:
            space = 0
        elif space >= self._number(self._counts.value + 4 * number, 4):
            return 0
        known: Any = self._tree(tree + space * self._stride) if tree else {"head": 0}
        head: int = known["head"]
        return head

    def _find(self, head: int, number: int, offset: int) -> Record | None:
        if self._by_node:
            place = self._entry.offsets["left"] & -8
            node = _beginning(self._entry, place - 16)  # rb_right and rb_left follow the parent's word
            return search(head, node, lambda record: _compare(offset, slot_of(record["offset"])[1]))
        address, _ = self._xarrays.load(head, offset)
        if not address or address & 1:
            return None
        entry: Record = self._entry(address)
        if slot_of(entry["offset"]) != (number, offset):
            raise error(Reason.CORRUPT_DATA, "zswap holds another slot's page", address=address)
        return entry


def _beginning(fields: Fields, offset: int) -> Callable[[int], Record]:
    """Read the struct that has an rb_node at an offset."""
    return lambda node: fields(node - offset)


def _compare(wanted: int, found: int) -> int:
    return (wanted > found) - (wanted < found)
