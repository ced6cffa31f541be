"""FreeBSD's minidumps: what all architectures share.

After a header page come the message buffer, from version 3 on (arm64: 2) dump_avail, the bitmap, the page map and the
pages, each part rounded up to a page. Source: FreeBSD sys/amd64/include/minidump.h, sys/arm64/include/minidump.h,
lib/libkvm/kvm_minidump_amd64.c for the checks and their texts. Nothing is read ahead: a part may be 1 GiB large.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.bsd.core import Place, fault
from kvmd.images.bsd.sparse import Layout, SparsePages
from kvmd.images.linux.source import Source
from kvmd.v1 import memory_pb2

MAGIC = b"minidump "
_MOST_RANGES = 1 << 20  # bytes of dump_avail
_MOST_BITMAP = 1 << 30  # 32 TiB of memory
_MOST_MAP = 256 << 20  # 64 TiB of kernel virtual memory on amd64, 128 GiB on arm64
_MAP_CHUNK = 1 << 20
VERSIONS = (1, 2, 3)


class Header(NamedTuple):
    """What a header says; sizes in bytes, addresses virtual but for ``dmapphys``."""

    version: int
    msgbuf_size: int
    bitmap_size: int
    map_size: int
    kernbase: int
    dmapbase: int
    dmapend: int
    avail_size: int = 0
    dmapphys: int = 0
    page_size: int = 4096


class Minidump:
    """The parts of a minidump's file.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """

    format = "freebsd-minidump"

    def __init__(self, source: Source, header: Header) -> None:
        self._source, self._header = source, header
        self.page_size = header.page_size
        avail = self.page_size + self._rounded(header.msgbuf_size)
        bitmap = avail + self._rounded(header.avail_size)
        self._map = bitmap + self._rounded(header.bitmap_size)
        pages = self._map + self._rounded(header.map_size)
        self._check(avail, header.avail_size, f"cannot read {header.avail_size} bytes for dump_avail")
        self._check(bitmap, header.bitmap_size, f"cannot read {header.bitmap_size} bytes for bitmap")
        wanted = f"cannot read {header.map_size} bytes from offset {self._map} for page map"
        self._check(self._map, header.map_size, wanted)
        if header.bitmap_size > _MOST_BITMAP or header.map_size > _MOST_MAP:
            message = f"a bitmap of {header.bitmap_size} bytes and a page map of {header.map_size} make no sense"
            raise error(Reason.CORRUPT_IMAGE, message)
        ranges = list(self._ranges(avail)) if header.avail_size else None
        layout = Layout(bitmap, header.bitmap_size, pages, self.page_size)
        self.sparse = SparsePages(source, layout, ranges)

    def _rounded(self, size: int) -> int:
        return size + self.page_size - 1 & -self.page_size

    def _check(self, offset: int, size: int, text: str) -> None:
        if size and offset + size > self._source.size:
            raise error(Reason.TRUNCATED_IMAGE, text)

    def _ranges(self, offset: int) -> Iterator[tuple[int, int]]:
        size = self._header.avail_size
        if size > _MOST_RANGES:
            raise error(Reason.CORRUPT_IMAGE, f"dump_avail of {size} bytes makes no sense")
        data = self._source.read(offset, size)
        for start, end in struct.iter_unpack("<QQ", data[: len(data) & -16]):
            if not end:
                return
            yield start, end

    def physical(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: EXCLUDED, BEYOND_DUMP.
        """
        return self.page(address, "")

    def page(self, physical: int, translator: str) -> Place:
        """Find a page's bytes.

        :param translator: libkvm's text if it is not there.
        :raises KvmError: EXCLUDED, BEYOND_DUMP.
        """
        found = self.sparse.find(physical)
        if found is Reason.EXCLUDED:
            raise fault("freebsd", found, f"the page at {physical:#x} was left out when the dump was made", translator)
        if isinstance(found, Reason):
            message = f"no memory of the dump holds physical address {physical:#x}"
            raise fault("freebsd", found, message, translator)
        return found

    def map_entry(self, index: int) -> int | None:
        """An entry of the page map; None beyond its end.

        :raises KvmError: SOURCE_IO.
        """
        if index * 8 + 8 > self._header.map_size:
            return None
        return int.from_bytes(self._source.read(self._map + index * 8, 8), "little")

    def map_entries(self, index: int) -> Iterator[tuple[int, int]]:
        """The entries that are not 0, and their indices, from an index on."""
        count = self._header.map_size // 8
        while index < count:
            data = self._source.read(self._map + index * 8, min(_MAP_CHUNK, (count - index) * 8))
            if data.strip(b"\0"):
                words = struct.unpack(f"<{len(data) // 8}Q", data[: len(data) & -8])
                yield from ((index + at, word) for at, word in enumerate(words) if word)
            index += _MAP_CHUNK // 8

    def direct_pages(self, start: int, physical_base: int = 0) -> Iterator[memory_pb2.Page]:
        """The pages that the dump holds, at their addresses in the direct mapping, ascending."""
        base, end = self._header.dmapbase, self._header.dmapend
        for physical in self.sparse.present(max(start - base, 0) + physical_base):
            at = base + physical - physical_base
            if at >= end:
                return
            if at >= base:
                yield page_record(at, physical, self.page_size, 3, at, present=True)

    def direct_address(self, physical: int) -> int | None:
        """Where the direct mapping has what the dump holds; None of all else, which may be a device's."""
        at = physical - self._header.dmapphys + self._header.dmapbase
        if not self._header.dmapbase <= at < self._header.dmapend or isinstance(self.sparse.find(physical), Reason):
            return None
        return at


def page_record(  # noqa: PLR0913, PLR0917 - the fields of a page
    virtual: int, physical: int, length: int, protection: int, direct: int | None, present: bool
) -> memory_pb2.Page:
    """A page as the wire has it."""
    return memory_pb2.Page(
        virtual_address=virtual,
        physical_address=physical,
        length=length,
        protection=protection,
        direct_address=direct,
        present=present,
    )


def unpacked(source: Source, layout: struct.Struct, magic: bytes) -> tuple[int, ...]:
    """The fields of a header after its magic.

    :raises KvmError: TRUNCATED_IMAGE, UNSUPPORTED_FORMAT.
    """
    data = source.read(0, layout.size)
    if len(data) < layout.size:
        raise error(Reason.TRUNCATED_IMAGE, "cannot read dump header")
    if data[:24] != magic.ljust(24, b"\0"):
        raise error(Reason.UNSUPPORTED_FORMAT, "not a minidump for this platform")
    return layout.unpack(data)[1:]


def wrong_version(text: str) -> KvmError:
    """What is said of a version that is not known."""
    return error(Reason.UNSUPPORTED_FORMAT, text)
