"""The kernel's pages: what its page tables map, where the direct mapping has it, and whether the image holds it.

Source: Linux Documentation/arch/x86/x86_64/mm.rst. The direct mapping begins at ``page_offset_base`` (KASLR moves it),
or without CONFIG_DYNAMIC_MEMORY_LAYOUT where that document says. On arm64 it begins with the kernel's half (since 5.4),
and with memory at PHYS_OFFSET (arch/arm64/include/asm/memory.h); on
s390x with 0, or since 6.10 where VMCOREINFO says. docs/adr/0007-page-walk.md has the decisions.
"""

from __future__ import annotations

from collections.abc import Iterator

from drgn import Architecture

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.walk import Mapping, PageWalk, incomplete
from kvmd.v1 import memory_pb2

_ALL = (1 << 64) - 1
_PAGE_OFFSET = {4: 0xFFFF888000000000, 5: 0xFF11000000000000}


def pages(kernel: Kernel, start: int = 0) -> Iterator[memory_pb2.Page]:
    """List the kernel's pages from the one that holds ``start`` on, ascending; 0 begins with the kernel's half.

    What lies below a table that the image doesn't hold is passed over, and told when all else has been listed.

    :raises KvmError: UNSUPPORTED where page tables of the architecture are not known; BAD_ARGUMENT; CORRUPT_DATA; or
        at the end why the first such table can't be read (EXCLUDED, BEYOND_DUMP ...), with metadata ``address``, the
        first virtual address it would map, and ``skipped``, the number of such tables.
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
    return PageWalk(kernel.memory.physical, kernel.memory.root, kernel.memory.walkable().paging)


def _direct_map(kernel: Kernel, walk: PageWalk) -> int:
    """Where the direct mapping has, or would have, physical address 0; modulo 2**64."""
    if kernel.dump.architecture is Architecture.AARCH64:
        return walk.paging.base - (kernel.info.number("PHYS_OFFSET") or 0) & _ALL
    if kernel.dump.architecture is Architecture.S390X:
        return kernel.info.hexadecimal("IDENTITYBASE") or 0
    found = kernel.builtin("page_offset_base")
    try:
        base = kernel.memory.number(found.value) if found else 0
    except KvmError:
        base = 0
    return base if base >= walk.paging.bottom else _PAGE_OFFSET[walk.paging.levels]


def _direct_address(mapping: Mapping, direct: int, walk: PageWalk) -> int | None:
    """The address in the direct mapping, if it is mapped there: holes, devices and secret memory are not."""
    address = direct + mapping.physical & _ALL
    if address == mapping.virtual:
        return address
    return address if address >= walk.paging.bottom and walk.physical(address) == mapping.physical else None
