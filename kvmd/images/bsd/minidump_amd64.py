"""FreeBSD's minidump of amd64, versions 1 to 3.

The page map has a page-table entry for each 4 KiB from kernbase on (version 1), or a page-directory entry for each
2 MiB. Sources: FreeBSD sys/amd64/include/minidump.h, lib/libkvm/kvm_minidump_amd64.c (order of tests, masks, texts).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from kvmd.errors import KvmError, Reason, error
from kvmd.images.bsd.core import EXECUTE, PAGE, READ, WRITE, Place, fault
from kvmd.images.bsd.minidump import VERSIONS, Header, Minidump, page_record, unpacked, wrong_version
from kvmd.images.linux.source import Source
from kvmd.images.linux.walk import incomplete
from kvmd.v1 import memory_pb2

MAGIC = b"minidump FreeBSD/amd64"
_HEADER = struct.Struct("<24sIIIIQQQI4x")
_VALID, _WRITABLE, _LARGE, _NO_EXECUTE = 1, 1 << 1, 1 << 7, 1 << 63
_FRAME, _LARGE_FRAME = 0x000FFFFFFFFFF000, 0x000FFFFFFFE00000
_LARGE_SIZE = 2 << 20
_PATIENCE = 1 << 18  # tables in a row that map nothing: 512 GiB of them
Found = tuple[int, int, int]


def parse(source: Source) -> Header:
    """Read the header.

    :raises KvmError: TRUNCATED_IMAGE, UNSUPPORTED_FORMAT.
    """
    version, msgbuf, bitmap, pmap, kernbase, dmapbase, dmapend, avail = unpacked(source, _HEADER, MAGIC)
    if version not in VERSIONS:
        raise wrong_version(f"wrong minidump version. expected 3 got {version}")
    return Header(version, msgbuf, bitmap, pmap, kernbase, dmapbase, dmapend, avail if version == 3 else 0)


class Amd64Minidump(Minidump):
    """A minidump of amd64 (:class:`~kvmd.images.bsd.core.Core`)."""

    machine = "x86_64"

    def __init__(self, source: Source) -> None:
        super().__init__(source, parse(source))
        self._prefix = f"_amd64_minidump_vatop{'_v1' if self._header.version == 1 else ''}: "

    def kernel(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: NOT_MAPPED, EXCLUDED, BEYOND_DUMP.
        """
        header = self._header
        if address >= header.kernbase:
            physical = self._mapped(address)
            text = f"{self._prefix}physical address {physical & -PAGE:#x} not in minidump"
            return self.page(physical, text)
        if header.dmapbase <= address < header.dmapend:
            text = f"{self._prefix}direct map address {address:#x} not in minidump"
            return self.page(address - header.dmapbase, text)
        text = f"{self._prefix}virtual address {address:#x} not minidumped"
        raise fault("freebsd", Reason.NOT_MAPPED, "the dump has no such virtual address", text)

    def _mapped(self, address: int) -> int:
        """The physical address that the kernel's map has."""
        size = PAGE if self._header.version == 1 else _LARGE_SIZE
        entry = self.map_entry((address - self._header.kernbase) // size)
        if entry is None:
            raise fault("freebsd", Reason.NOT_MAPPED, "the address lies behind the page map's end")
        if self._header.version == 1:
            return self._valid(entry, "pte") + address % PAGE
        self._valid(entry, "pde")
        if entry & _LARGE:
            return (entry & _LARGE_FRAME) + address % _LARGE_SIZE
        table = entry & _FRAME
        place = self.page(table, f"cannot find page table entry for {table}")
        data = self._source.read(place.offset + (address >> 12 & 511) * 8, 8)
        if len(data) < 8:
            message = f"the dump file ends before the page table at {table:#x}"
            raise fault("freebsd", Reason.BEYOND_DUMP, message, f"cannot read page table entry for {table}")
        return self._valid(int.from_bytes(data, "little"), "pte") + address % PAGE

    def _valid(self, entry: int, name: str) -> int:
        if not entry & _VALID:
            message = "the page tables have no entry for the address"
            raise fault("freebsd", Reason.NOT_MAPPED, message, f"{self._prefix}{name} not valid")
        return entry & _FRAME

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.bsd.core.Core`: the direct mapping's that the dump holds, and the kernel map's.

        :raises KvmError: at the end, why the first page table can't be read that can't; CORRUPT_DATA.
        """
        parts = {self._header.dmapbase: self.direct_pages, self._header.kernbase: self._kernel_pages}
        for base in sorted(parts):
            yield from parts[base](start)

    def _kernel_pages(self, start: int) -> Iterator[memory_pb2.Page]:
        size = PAGE if self._header.version == 1 else _LARGE_SIZE
        failure: KvmError | None = None
        skipped = fruitless = 0
        for index, entry in self.map_entries(max(start - self._header.kernbase, 0) // size):
            at = self._header.kernbase + index * size
            fruitless += 1
            if at >= 1 << 64:
                break
            if fruitless > _PATIENCE:
                raise error(Reason.CORRUPT_DATA, "the minidump's page tables map nothing, without end", address=at)
            try:
                found = self._entry_pages(at, entry)
            except KvmError as e:
                skipped += 1
                failure = failure or error(e.reason, e.message, address=at)
                continue
            for virtual, physical, length in found:
                fruitless = 0
                if start < virtual + length <= 1 << 64:
                    yield self._record(virtual, physical, length)
        if failure is not None:
            raise incomplete(failure, skipped)

    def _entry_pages(self, at: int, entry: int) -> list[Found]:
        """What an entry of the page map maps: (virtual address, page-table entry, length)."""
        if not entry & _VALID:
            return []
        if self._header.version == 1:
            return [(at, entry, PAGE)]
        if entry & _LARGE:
            return [(at, entry & ~(_LARGE_SIZE - 1) | entry & 0xFFF, _LARGE_SIZE)]
        place = self.page(entry & _FRAME, "")
        data = self._source.read(place.offset, PAGE)
        if len(data) < PAGE:
            raise error(Reason.BEYOND_DUMP, f"the dump file ends before the page table at {entry & _FRAME:#x}")
        rows = enumerate(struct.unpack("<512Q", data))
        return [(at + number * PAGE, word, PAGE) for number, word in rows if word & _VALID]

    def _record(self, virtual: int, entry: int, length: int) -> memory_pb2.Page:
        physical = entry & _FRAME
        rights = READ | (WRITE if entry & _WRITABLE else 0) | (0 if entry & _NO_EXECUTE else EXECUTE)
        present = not isinstance(self.sparse.find(physical), Reason)
        return page_record(virtual, physical, length, rights, self.direct_address(physical), present)
