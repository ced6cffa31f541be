"""The kernel's pages: what its page tables map, where the direct mapping has it, and whether the image holds it.

Source: Linux Documentation/arch/x86/x86_64/mm.rst. The direct mapping begins at ``page_offset_base`` (KASLR moves it),
or without CONFIG_DYNAMIC_MEMORY_LAYOUT where that document says. docs/adr/0007-page-walk.md has the decisions.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Architecture

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.walk import Mapping, PageWalk, incomplete
from kvmd.v1 import memory_pb2

_PAGE_OFFSET = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}


def pages(kernel: Kernel, start: int = 0) -> Iterator[memory_pb2.Page]:
    """List the kernel's pages from the one that holds ``start`` on, ascending; 0 begins with the kernel's half.

    What lies below a table that the image doesn't hold is passed over, and told when all else has been listed.

    :raises KvmError: UNSUPPORTED but on x86-64; BAD_ARGUMENT; CORRUPT_DATA; or at the end why the first such table
        can't be read (EXCLUDED, BEYOND_DUMP ...), with metadata ``address``, the first virtual address it would map,
        and ``skipped``, the number of such tables.
    """
    if not 0 <= start < 1 << 64:
        raise error(Reason.BAD_ARGUMENT, f"{start:#x} is no address")
    walk, trouble = _walk(kernel), kernel.dump.layout.trouble
    direct = _direct_map(kernel, walk)
    for mapping in walk.mappings(start):
        page = memory_pb2.Page(
            virtual_address=mapping.virtual,
            physical_address=mapping.physical,
            length=mapping.length,
            protection=mapping.protection,
            present=trouble(mapping.physical) is None,
        )
        address = _direct_address(mapping, direct, walk)
        if address is not None:
            page.direct_address = address
        yield page
    if walk.failure is not None:
        raise incomplete(walk.failure, walk.skipped)


def _walk(kernel: Kernel) -> PageWalk:
    paging, top = kernel.memory.walkable().paging, kernel.info.symbol("swapper_pg_dir")
    if kernel.dump.architecture is not Architecture.X86_64 or top is None:
        raise error(Reason.UNSUPPORTED, "the kernel's pages can be listed of x86-64 kernels only")
    root = kernel.memory.translate(top).physical
    return PageWalk(kernel.memory.physical, root, paging.levels, kernel.info.number("sme_mask") or 0)


def _direct_map(kernel: Kernel, walk: PageWalk) -> int:
    """Where the direct mapping begins."""
    found = kernel.builtin("page_offset_base")
    try:
        base = int.from_bytes(kernel.memory.kernel(found.value, 8), "little") if found else 0
    except KvmError:
        base = 0
    return base if base >= walk.bottom else _PAGE_OFFSET[walk.levels]


def _direct_address(mapping: Mapping, direct: int, walk: PageWalk) -> int | None:
    """The address in the direct mapping, if it is mapped there: holes, devices and secret memory are not."""
    address = direct + mapping.physical
    if address == mapping.virtual:
        return address
    return address if address < 1 << 64 and walk.physical(address) == mapping.physical else None
