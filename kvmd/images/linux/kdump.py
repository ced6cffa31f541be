"""The KDUMP format (makedumpfile, QEMU): its headers, checked before drgn may see them, and its page table.

Source: makedumpfile 1.7's diskdump_mod.h (header versions 1 to 6). Pages are found by two bitmaps (of RAM, and of the
pages that were dumped) and a table of 24-byte descriptors, one a dumped page, in page order. libkdumpfile maps the file
into memory, so that a page beyond the end of a cut file would kill the process: :attr:`KdumpLayout.guarded` says
that every page must be checked first.
"""

from __future__ import annotations

import re
import struct
import sys
from array import array
from collections.abc import Iterator
from functools import cached_property

from kvmd.errors import Reason, error
from kvmd.images.linux.order import BIG, LITTLE, Order
from kvmd.images.linux.source import Source, exact

MAGIC = b"KDUMP   "
_CODECS = ((0x20, "zstd"), (4, "snappy"), (2, "lzo"), (1, "zlib"))
DESCRIPTOR = 24
"""The size of a page descriptor in bytes."""
_BLOCK = 1 << 12  # bytes of a bitmap that are counted at once
_CHECKED = 1 << 18  # descriptors looked at when the dump is opened
_MAX_VMCOREINFO = 1 << 20
_MAX_NOTES = 1 << 26
_MAX_CPUS = 1 << 16
_VERSIONS = 32  # of the header; of those in the other byte order none is as low
_ONES = re.compile("1+")


def _version(head: bytes, order: Order) -> int:
    found: int = struct.unpack_from(order + "I", head, 8)[0]
    return found


def _little(table: bytes) -> bytes:
    """Big-endian page descriptors as little-endian: offset (64 bits), size, flags (32 each), the page's flags (64)."""
    words = array("I", table)
    words.byteswap()
    for wide in (0, 4):
        words[wide::6], words[wide + 1 :: 6] = words[wide + 1 :: 6], words[wide::6]
    return words.tobytes()


def _corrupt(what: str) -> Exception:
    return error(Reason.CORRUPT_IMAGE, f"the KDUMP header's {what} makes no sense", field=what)


class KdumpLayout:
    """A KDUMP file.

    :raises KvmError: CORRUPT_IMAGE, TRUNCATED_IMAGE, SPLIT_IMAGE.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        head = exact(source, 0, 464, "the KDUMP header")
        self.order = LITTLE if _version(head, LITTLE) <= _VERSIONS else BIG
        self._version = _version(head, self.order)
        self.machine = head[12 + 4 * 65 : 12 + 5 * 65].split(b"\0")[0].decode("ascii", "replace")
        status, self.page_size, sub, bitmap, mapnr, _, _, _, _, cpus = struct.unpack_from(
            self.order + "IiiIIIIIIi", head, 424
        )
        self._status: int = status
        if not 1 <= self._version <= _VERSIONS:
            raise _corrupt("header_version")
        if self.page_size not in (4096, 8192, 16384, 32768, 65536):
            raise _corrupt("block_size")
        if not 1 <= sub <= 1 << 16:
            raise _corrupt("sub_hdr_size")
        if not 0 <= cpus <= _MAX_CPUS:
            raise _corrupt("nr_cpus")
        self._bitmap = (1 + sub) * self.page_size
        self._pages = self._sub_header(mapnr)
        half = -(-self._pages // (8 * self.page_size))
        if not self._pages or self._pages > 1 << 34 or bitmap < 2 * half:
            raise _corrupt("max_mapnr or bitmap_blocks")
        self._half = bitmap // 2 * self.page_size
        self._table = self._bitmap + bitmap * self.page_size
        if self._table > source.size:
            raise error(Reason.TRUNCATED_IMAGE, "the dump ends inside its page bitmaps")
        if self._table + self._dumped * DESCRIPTOR > source.size:
            raise error(Reason.TRUNCATED_IMAGE, "the dump ends inside its page descriptors")

    def _sub_header(self, mapnr: int) -> int:
        data = exact(self._source, self.page_size, 104, "the KDUMP sub-header")
        split, info_at, info_size, note_at, note_size, erase_at, erase_size, wide = struct.unpack_from(
            self.order + "12xi16xQQQQQQ16xQ", data
        )
        if self._version >= 2 and split:
            raise error(Reason.SPLIT_IMAGE, "one part of a split dump; join the parts with makedumpfile --reassemble")
        self.vmcoreinfo = b""
        if self._version >= 3 and info_size:
            if info_size > _MAX_VMCOREINFO or not info_at:
                raise _corrupt("size_vmcoreinfo")
            self.vmcoreinfo = exact(self._source, info_at, info_size, "VMCOREINFO").rstrip(b"\0")
        self._note = (0, 0)
        if self._version >= 4:
            self._bounds(note_at, note_size, "size_note")
            self._note = (note_at, note_size)
        if self._version >= 5:
            self._bounds(erase_at, erase_size, "size_eraseinfo")
        return wide if self._version >= 6 else mapnr

    def _bounds(self, offset: int, size: int, what: str) -> None:
        if size > _MAX_NOTES or (size and not offset):
            raise _corrupt(what)
        if size and offset + size > self._source.size:
            raise error(Reason.TRUNCATED_IMAGE, f"the dump ends before its {what}")

    @property
    def notes(self) -> bytes:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        return self._source.read(*self._note)

    @cached_property
    def format(self) -> str:
        """``kdump-`` and the codec: zstd, snappy, lzo, zlib or raw."""
        flags = self._status
        for row in struct.iter_unpack("<12xI8x", self.descriptors(0, min(self._dumped, 256))):
            flags |= row[0]
        return "kdump-" + next((name for bit, name in _CODECS if flags & bit), "raw")

    @cached_property
    def _counts(self) -> array[int]:
        """How many pages were dumped before each block of the second bitmap; last, all of them."""
        counts, total, size = array("Q", [0]), 0, -(-self._pages // 8)
        for at in range(0, size, _BLOCK * 16):
            data = self._source.read(self._bitmap + self._half + at, min(_BLOCK * 16, size - at))
            for block in range(0, min(_BLOCK * 16, size - at), _BLOCK):
                total += int.from_bytes(data[block : block + _BLOCK], "little").bit_count()
                counts.append(total)
        return counts

    @property
    def _dumped(self) -> int:
        return self._counts[-1]

    @cached_property
    def guarded(self) -> bool:
        """Whether a page descriptor points beyond the file's end.

        Of dumps with more than 262,144 pages the last ones are looked at: makedumpfile and QEMU write pages in order.
        """
        first = max(0, self._dumped - _CHECKED)
        words = array("Q")
        words.frombytes(self.descriptors(first, self._dumped - first))
        if sys.byteorder != "little":
            words.byteswap()
        size = self._source.size
        if words and max(words[::3]) + max(map((0xFFFFFFFF).__and__, words[1::3])) <= size:
            return False
        pairs = zip(words[::3], words[1::3], strict=True)
        return any(offset + (length & 0xFFFFFFFF) > size for offset, length in pairs)

    def _bit(self, bitmap: int, page: int) -> bool:
        data = self._source.read(bitmap + page // 8, 1)
        return bool(data and data[0] >> page % 8 & 1)

    def runs(self) -> Iterator[range]:
        """See :class:`~kvmd.images.linux.layout.DumpLayout`."""
        for at in range(0, -(-self._pages // 8), _BLOCK):
            left = self._pages - at * 8
            block = int.from_bytes(
                self._source.read(self._bitmap + self._half + at, min(_BLOCK, -(-left // 8))), "little"
            )
            first = at * 8 * self.page_size
            for run in _ONES.finditer(f"{block:b}"[::-1][:left]):
                yield range(first + run.start() * self.page_size, first + run.end() * self.page_size)

    def trouble(self, address: int) -> Reason | None:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        page = address // self.page_size
        if page >= self._pages:
            return Reason.BEYOND_DUMP
        if not self._bit(self._bitmap + self._half, page):
            return Reason.EXCLUDED if self._bit(self._bitmap, page) else Reason.BEYOND_DUMP
        offset, size = self._descriptor(page)
        return Reason.SHORT_FILE if offset + size > self._source.size else None

    def rank(self, page: int, count: int) -> int | None:
        """How many pages were dumped before a run of pages; None if one of the run wasn't dumped."""
        if page + count > self._pages:
            return None
        block, bit = divmod(page, _BLOCK * 8)
        start = self._bitmap + self._half + block * _BLOCK
        bits = int.from_bytes(self._source.read(start, (bit + count + 7) // 8), "little")
        if (bits >> bit) + 1 & (1 << count) - 1:
            return None
        return self._counts[block] + (bits & (1 << bit) - 1).bit_count()

    def descriptors(self, rank: int, count: int) -> bytes:
        """The page descriptors from one on, little-endian whatever the file is; fewer where it ends."""
        data = self._source.read(self._table + rank * DESCRIPTOR, count * DESCRIPTOR)
        whole = data[: len(data) // DESCRIPTOR * DESCRIPTOR]
        return whole if self.order == LITTLE else _little(whole)

    def _descriptor(self, page: int) -> tuple[int, int]:
        rank = self.rank(page, 1)
        data = b"" if rank is None else self.descriptors(rank, 1)
        if len(data) < DESCRIPTOR:
            return self._source.size, 1
        offset, size = struct.unpack_from("<QI", data)
        return offset, size
