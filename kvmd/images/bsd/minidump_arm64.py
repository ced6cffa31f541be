"""FreeBSD's minidump of arm64, versions 1 to 3: pages of 4 or 16 KiB.

The page map has a last-level entry for each page from kernbase on. Sources: FreeBSD sys/arm64/include/minidump.h,
lib/libkvm/kvm_minidump_aarch64.c (order of tests, masks, texts); Arm ARM, D8 for PXN. The direct mapping begins at
physical ``dmapphys``, in page walks too, where FreeBSD forgets it (docs/quirks.md, Q27).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvmd.errors import Reason, error
from kvmd.images.bsd.core import EXECUTE, READ, WRITE, Place, fault
from kvmd.images.bsd.minidump import VERSIONS, Header, Minidump, page_record, unpacked, wrong_version
from kvmd.images.linux.source import Source
from kvmd.v1 import memory_pb2

MAGIC = b"minidump FreeBSD/arm64"
_HEADER = struct.Struct("<24sIIIIQQQQII")
_PAGE_SIZES = (4096, 16384)
_PAGE_ENTRY, _READ_ONLY, _PXN = 3, 1 << 7, 1 << 53
_FRAME = ~0xFFFC000000000FFF & (1 << 64) - 1
_PATIENCE = 1 << 22  # entries in a row that are not valid: 16 GiB of them
_PREFIX = "_aarch64_minidump_vatop: "


def parse(source: Source) -> Header:
    """Read the header.

    :raises KvmError: TRUNCATED_IMAGE, UNSUPPORTED_FORMAT.
    """
    version, msgbuf, bitmap, pmap, kernbase, dmapphys, dmapbase, dmapend, avail, flags = unpacked(
        source, _HEADER, MAGIC
    )
    if version not in VERSIONS:
        raise wrong_version(f"wrong minidump version. Expected 3 got {version}")
    size = flags & 3 if version >= 3 else 0
    if size >= len(_PAGE_SIZES):
        raise error(Reason.UNSUPPORTED_FORMAT, f"unknown page size flag {size:x}")
    avail = avail if version >= 2 else 0
    return Header(
        version, msgbuf, bitmap, pmap, kernbase, dmapbase, dmapend, avail, dmapphys, _PAGE_SIZES[size]
    )  # fmt: skip


class Arm64Minidump(Minidump):
    """A minidump of arm64 (:class:`~kvmd.images.bsd.core.Core`)."""

    machine = "aarch64"

    def __init__(self, source: Source) -> None:
        super().__init__(source, parse(source))

    def kernel(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: NOT_MAPPED, EXCLUDED, BEYOND_DUMP.
        """
        header = self._header
        if header.dmapbase <= address < header.dmapend:
            physical = address - header.dmapbase + header.dmapphys
            return self.page(physical, f"{_PREFIX}direct map address {address:#x} not in minidump")
        if address < header.kernbase:
            text = f"{_PREFIX}virtual address {address:#x} not minidumped"
            raise fault("freebsd", Reason.NOT_MAPPED, "the dump has no such virtual address", text)
        entry = self.map_entry((address - header.kernbase) // self.page_size)
        if entry is None:
            raise fault("freebsd", Reason.NOT_MAPPED, "the address lies behind the page map's end")
        if entry & 3 != _PAGE_ENTRY:
            message = "the page tables have no entry for the address"
            raise fault("freebsd", Reason.NOT_MAPPED, message, f"{_PREFIX}pde not valid")
        physical = self._frame(entry)
        text = f"{_PREFIX}physical address {physical:#x} not in minidump"
        return self.page(physical + address % self.page_size, text)

    def _frame(self, entry: int) -> int:
        return entry & _FRAME & -self.page_size

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.bsd.core.Core`: the direct mapping's that the dump holds, and the kernel map's.

        :raises KvmError: CORRUPT_DATA.
        """
        parts = {self._header.dmapbase: self._direct, self._header.kernbase: self._kernel_pages}
        for base in sorted(parts):
            yield from parts[base](start)

    def _direct(self, start: int) -> Iterator[memory_pb2.Page]:
        return self.direct_pages(start, self._header.dmapphys)

    def _kernel_pages(self, start: int) -> Iterator[memory_pb2.Page]:
        base, size, fruitless = self._header.kernbase, self.page_size, 0
        for index, entry in self.map_entries(max(start - base, 0) // size):
            at = base + index * size
            if at >= 1 << 64:
                return
            fruitless += 1
            if fruitless > _PATIENCE:
                raise error(Reason.CORRUPT_DATA, "the minidump's page map maps nothing, without end", address=at)
            if entry & 3 != _PAGE_ENTRY:
                continue
            fruitless = 0
            physical = self._frame(entry)
            rights = READ | (0 if entry & _READ_ONLY else WRITE) | (0 if entry & _PXN else EXECUTE)
            present = not isinstance(self.sparse.find(physical), Reason)
            yield page_record(at, physical, size, rights, self.direct_address(physical), present)
