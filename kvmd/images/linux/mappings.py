"""The mappings of processes (VMAs), by address.

Source: Linux include/linux/maple_tree.h and lib/maple_tree.c (6.1), before that the red-black tree mm->mm_rb.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.swap.rbtree import Record, search

_LEVELS = 31  # MAPLE_HEIGHT_MAX
_RANGE, _ARANGE, _LEAF = 2, 3, 1  # enum maple_type
_NODE = 256
_SLOTS = {_LEAF: 16, _RANGE: 16, _ARANGE: 10}  # MAPLE_RANGE64_SLOTS, MAPLE_ARANGE64_SLOTS
_PARENT = 8


class Mapping(NamedTuple):
    """A mapping.

    :ivar first: the number of the file's page at ``start``.
    :ivar file: the address of its struct file; 0 for anonymous memory.
    """

    start: int
    end: int
    first: int
    file: int


class Mappings:
    """The mappings of one kernel's processes.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._read, self._words = kernel.memory.kernel, kernel.memory.words
        wanted = {"tree": ("mm_mt.ma_root",), "root": ("mm_rb.rb_node",)}
        self._mm = Fields(kernel.prog, self._read, "struct mm_struct", wanted)
        vma = {"start": ("vm_start",), "end": ("vm_end",), "first": ("vm_pgoff",), "file": ("vm_file",)}
        vma |= {"left": ("vm_rb.rb_left",), "right": ("vm_rb.rb_right",)}
        self._vma = Fields(kernel.prog, self._read, "struct vm_area_struct", vma)
        self._maple = "tree" in self._mm.offsets
        if not self._maple:
            with kernel.reading("the mappings of processes"):
                self._offset = kernel.prog.type("struct vm_area_struct").member("vm_rb").offset

    def find(self, mm: int, address: int) -> Mapping | None:
        """The mapping that holds an address.

        :param mm: the address of the process's mm_struct.
        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds the tree.
        """
        known: Any = self._mm(mm)
        if self._maple:
            vma = self._leaf(known["tree"], address)
            record: Any = self._vma(vma) if vma else None
        else:
            record = search(known["root"], self._by_node, lambda vma: _side(vma, address))
        if record is None or not record["start"] <= address < record["end"]:
            return None
        return Mapping(record["start"], record["end"], record["first"], record["file"])

    def _by_node(self, node: int) -> Record:
        found: Any = self._vma(node - self._offset)
        return found  # type: ignore[no-any-return]

    def _leaf(self, entry: int, address: int) -> int:
        """The entry of a maple tree; a node's pivots are the last address of each slot, and 0 after the last one."""
        if entry & 3 != 2 or entry <= 4096:  # a tree of one entry, at 0, has no node
            return 0
        for _ in range(_LEVELS):
            node, kind = entry & -_NODE, entry >> 3 & 15
            count = _SLOTS.get(kind)
            if count is None:
                break
            words = self._words(node, _NODE // 8)[_PARENT // 8 :]
            pivots, slots = words[: count - 1], words[count - 1 : 2 * count - 1]
            index = next((i for i, p in enumerate(pivots) if address <= p or (p == 0 and i)), count - 1)
            entry = slots[index]
            if kind == _LEAF:
                return 0 if entry & 3 else entry
        raise error(Reason.CORRUPT_DATA, "a process's tree of mappings makes no sense", address=entry & -_NODE)


def _side(vma: Record, address: int) -> int:
    if address < vma["start"]:
        return -1
    return 1 if address >= vma["end"] else 0
