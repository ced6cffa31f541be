"""The kernel's XArray, read by index.

Source: Linux include/linux/xarray.h and lib/xarray.c (4.20; the nodes are the radix tree's): an entry whose two lowest
bits are 10 is internal: a node, or below 4096 a sibling of the slot that holds an entry of several indices; one whose
lowest bit is set is a value. The nodes are hostile: every step goes down, and there are at most sixteen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel

_MOST = 64
_REMEMBERED = 1 << 12

Loaded = tuple[int, int]
"""An entry, and the first of the indices that it stands for."""


class XArrays:
    """Reads XArrays of one kernel; nodes are remembered as long as the object is kept.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._words, read = kernel.memory.words, kernel.memory.kernel
        self._node = Fields(kernel.prog, read, "struct xa_node", {"shift": ("shift",), "slots": ("slots.0",)})
        with kernel.reading("trees of pages"):
            self._size: int = kernel.prog.type("struct xa_node").member("slots").type.length or 0
        if self._size not in (16, 64):
            raise error(Reason.CORRUPT_DATA, f"a tree of {self._size} branches makes no sense")
        self._bits = self._size.bit_length() - 1  # XA_CHUNK_SHIFT: 4 with CONFIG_BASE_SMALL, else 6
        self._nodes: dict[int, tuple[int, tuple[int, ...]]] = {}

    def forget(self) -> None:
        """Forget the nodes, which may have changed."""
        self._nodes.clear()

    def load(self, head: int, index: int) -> Loaded:
        """Load the entry at an index; 0 if there is none.

        :param head: ``xa_head``.
        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds a node.
        """
        entry, above, base = head, _MOST, 0
        while _is_node(entry):
            shift, slots = self._slots(entry - 2)
            if shift >= above or shift % self._bits:
                raise _corrupt(entry)
            if index >> shift >> self._bits and above == _MOST:
                return 0, index  # beyond what the tree covers
            slot = index >> shift & self._size - 1
            entry = slots[slot]
            if entry & 3 == 2 and entry >> 2 < self._size - 1:
                slot = entry >> 2
                entry = slots[slot]
                if entry & 3 == 2:
                    raise _corrupt(entry)
            above, base = shift, (index >> shift & -self._size | slot) << shift
        if above == _MOST:
            return (entry, 0) if index == 0 else (0, index)  # an entry at index 0 needs no node
        return (entry, base) if entry & 3 != 2 else (0, index)

    def entries(self, head: int, most: int) -> Iterator[Loaded]:
        """List entries in order, of so many nodes at most.

        :raises KvmError: as :meth:`load`.
        """
        todo = [(head, 0, _MOST)]
        while todo and most > 0:
            entry, base, above = todo.pop()
            if not _is_node(entry):
                if entry and entry & 3 != 2:
                    yield entry, base
                continue
            most -= 1
            shift, slots = self._slots(entry - 2)
            if shift >= above or shift % self._bits:
                raise _corrupt(entry)
            below = [(slot, base + (index << shift), shift) for index, slot in enumerate(slots) if slot]
            todo.extend(reversed(below))

    def _slots(self, node: int) -> tuple[int, tuple[int, ...]]:
        found = self._nodes.get(node)
        if found is None:
            known: Any = self._node(node)
            at = self._node.offsets["slots"]
            found = known["shift"], self._words(node + at, self._size)
            if len(self._nodes) >= _REMEMBERED:
                self._nodes.clear()
            self._nodes[node] = found
        return found


def _is_node(entry: int) -> bool:
    return entry & 3 == 2 and entry > 4096


def _corrupt(entry: int) -> KvmError:
    return error(Reason.CORRUPT_DATA, "the kernel's tree of pages makes no sense", address=entry & -4)


def value(entry: int) -> int | None:
    """The value that an entry holds; None if it is none."""
    return entry >> 1 if entry & 1 else None
