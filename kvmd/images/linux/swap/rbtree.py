"""The kernel's red-black trees, searched. Source: Linux include/linux/rbtree.h.

A tree of so many levels holds more nodes than there are bytes: who goes further down goes in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kvmd.errors import KvmError, Reason, error

_LEVELS = 128

Record = dict[str, Any]


def search(root: int, node: Callable[[int], Record], side: Callable[[Record], int]) -> Record | None:
    """Search for a record.

    :param root: the address of the root's rb_node.
    :param node: reads the record that holds an rb_node; with ``left`` and ``right``.
    :param side: less than 0 to go left, more than 0 to go right, 0 for the one that is sought.
    :raises KvmError: CORRUPT_DATA, or the fault of a page that holds a node.
    """
    for _ in range(_LEVELS):
        if not root:
            return None
        record = node(root)
        where = side(record)
        if where == 0:
            return record
        root = record["left"] if where < 0 else record["right"]
    raise _deep(root)


def walk(root: int, node: Callable[[int], Record], most: int) -> Iterator[Record]:
    """List records in order, at most so many.

    :raises KvmError: CORRUPT_DATA, or the fault of a page that holds a node.
    """
    above: list[Record] = []
    while root or above:
        while root:
            if len(above) >= _LEVELS:
                raise _deep(root)
            above.append(node(root))
            root = above[-1]["left"]
        record = above.pop()
        if most <= 0:
            raise error(Reason.CORRUPT_DATA, "a tree of the kernel's has too many nodes")
        most -= 1
        yield record
        root = record["right"]


def _deep(address: int) -> KvmError:
    return error(Reason.CORRUPT_DATA, "a tree of the kernel's is too deep", address=address)
