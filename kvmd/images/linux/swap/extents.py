"""Where the slots of a swap area lie on its block device.

Source: Linux mm/swapfile.c (offset_to_swap_extent) and include/linux/swap.h (struct swap_extent; a tree since 5.3):
an extent maps ``nr_pages`` slots from ``start_page`` on to blocks of a page each, from ``start_block`` on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.swap.rbtree import Record, search

_EXTENT = {
    "start": ("start_page",),
    "count": ("nr_pages",),
    "block": ("start_block",),
    "left": ("rb_node.rb_left",),
    "right": ("rb_node.rb_right",),
}
_MAX_BLOCK = 1 << 52


class Extents:
    """Extents of one kernel's areas.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._fields = Fields(kernel.prog, kernel.memory.kernel, "struct swap_extent", _EXTENT)
        with kernel.reading("swap extents"):
            self._offset = kernel.prog.type("struct swap_extent").member("rb_node").offset

    def runs(self, root: int, offset: int, count: int) -> Iterator[tuple[int, int]]:
        """Where so many slots lie: (block, number of blocks) in turn.

        :param root: ``swap_extent_root.rb_node``.
        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds an extent.
        """
        while count > 0:
            found = search(root, self._node, partial(_side, offset))
            if found is None or found["block"] >= _MAX_BLOCK:
                raise error(Reason.CORRUPT_DATA, f"no extent of the swap area holds slot {offset}")
            inside = offset - found["start"]
            length = min(count, found["count"] - inside)
            yield found["block"] + inside, length
            offset += length
            count -= length

    def _node(self, address: int) -> Record:
        found: Any = self._fields(address - self._offset)
        return found  # type: ignore[no-any-return]


def _side(offset: int, extent: Record) -> int:
    if offset < extent["start"]:
        return -1
    return 1 if offset >= extent["start"] + extent["count"] else 0
