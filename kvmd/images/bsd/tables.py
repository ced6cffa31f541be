"""All pages that amd64 page tables map, as records; what bounds the walk is in docs/adr/0007-page-walk.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmd.images.linux.paging_x86 import X86Paging
from kvmd.images.linux.walk import PageWalk, incomplete
from kvmd.v1 import memory_pb2


def amd64_pages(
    read: Callable[[int, int], bytes], root: int, start: int, present: Callable[[int], bool]
) -> Iterator[memory_pb2.Page]:
    """Walk four levels of tables, the kernel's half.

    :param read: reads physical memory; raises KvmError.
    :param present: whether the dump holds a physical address.
    :raises KvmError: CORRUPT_DATA; and after the last page, why the first table could not be read that could not.
    """
    walk = PageWalk(read, root, X86Paging(4))
    for mapping in walk.mappings(start):
        yield memory_pb2.Page(
            virtual_address=mapping.virtual,
            physical_address=mapping.physical,
            length=mapping.length,
            protection=mapping.protection,
            present=present(mapping.physical),
        )
    if walk.failure is not None:
        raise incomplete(walk.failure, walk.skipped)
