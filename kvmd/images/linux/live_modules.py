"""When the list of modules changed: its links and names, read without any type.

Source: Linux include/linux/module.h: in every version ``list`` and ``name`` follow each other in struct module.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmd.errors import KvmError

_NODE = struct.Struct("<QQ56s")  # list.next, list.prev, name[MODULE_NAME_LEN] on 64-bit kernels
_MAX_MODULES = 1 << 12

Read = Callable[[int, int], bytes]


class ModuleList:
    """The kernel's list of modules.

    :param read: reads kernel memory.
    :param head: gives the address of ``modules``, None if it isn't known.
    """

    def __init__(self, read: Read, head: Callable[[], int | None]) -> None:
        self._read = read
        self._head = head

    def state(self) -> object:
        """A value that equals an earlier one if no module came or went; equals nothing if the list can't be read."""
        head = self._head()
        if head is None:  # a kernel without modules
            return None
        seen: dict[int, bytes] = {}
        try:
            node, _ = struct.unpack("<QQ", self._read(head, 16))
            while node != head:
                if node in seen or len(seen) >= _MAX_MODULES:
                    return object()
                following, _, seen[node] = _NODE.unpack(self._read(node, _NODE.size))
                node = following
        except KvmError:
            return object()
        return tuple(seen.items())
