"""Long reads of a KDUMP file, without drgn.

libkdumpfile looks each page up in a list of a thousand before it reads it, and makes a new context for each that zstd
has packed: for a long read that takes longer than all else. What isn't plain here (a page that was left out, a codec
that isn't known, damage) is left to it.

Source: makedumpfile 1.7's diskdump_mod.h (page_desc_t). Whatever the file says, a page's data are no longer than the
page is, and what comes out of them isn't, either.
"""

from __future__ import annotations

from kvmd.images.base import Unpack
from kvmd.images.linux.kdump import DESCRIPTOR, KdumpLayout
from kvmd.images.linux.kdumpcodecs import MASK, unpack
from kvmd.images.linux.source import Source

_FAR = 1 << 20  # bytes between pages that are not read along


class PageReader:
    """Long reads of physical memory."""

    def __init__(self, source: Source, layout: KdumpLayout, unpacked: Unpack = unpack) -> None:
        self._source, self._layout, self._size = source, layout, layout.page_size
        self._unpacked = unpacked
        # All pages of zeroes are one page of the file, far from the others.
        self._last: tuple[tuple[int, int], bytes] = ((0, 0), b"")

    def read_into(self, address: int, into: memoryview) -> bool:
        """Fill a buffer.

        :returns: whether it is filled; else drgn is to read it, or to say why not.
        :raises KvmError: SOURCE_IO.
        """
        first, skip = divmod(address, self._size)
        count = -(-(skip + len(into)) // self._size)
        rank = self._layout.rank(first, count)
        table = b"" if rank is None else self._layout.descriptors(rank, count)
        if len(table) < count * DESCRIPTOR:
            return False
        words = memoryview(table).cast("Q")
        whole = into if not skip and len(into) == count * self._size else memoryview(bytearray(count * self._size))
        try:
            self._pages(words[::3].tolist(), words[1::3].tolist(), whole)
        except ValueError:
            return False
        if whole is not into:
            into[:] = whole[skip : skip + len(into)]
        return True

    def _pages(self, offsets: list[int], words: list[int], into: memoryview) -> None:
        """Pages by the first two words of their descriptors: the offset; size and flags. Raises ValueError."""
        kinds = {word >> 32 & MASK for word in words}
        sizes = [word & 0xFFFFFFFF for word in words]
        if max(sizes) > self._size:
            raise ValueError("longer than a page")
        low, high = min(offsets), max(offsets) + self._size
        if len(kinds) > 1 or high - low > len(offsets) * self._size + _FAR:
            for n, row in enumerate(zip(offsets, sizes, words, strict=True)):
                into[n * self._size : (n + 1) * self._size] = self._page(*row)
            return
        data = self._source.read(low, high - low)
        packed = [data[at - low : at - low + size] for at, size in zip(offsets, sizes, strict=True)]
        self._unpacked(kinds.pop(), self._size, packed, into)

    def _page(self, offset: int, size: int, word: int) -> bytes:
        """A page that isn't beside others, or not packed as they are; the next may be the same."""
        row = offset, word
        if row != self._last[0]:
            page = bytearray(self._size)
            unpack(word >> 32 & MASK, self._size, [self._source.read(offset, size)], memoryview(page))
            self._last = row, bytes(page)
        return self._last[1]
