"""Pages of a dump's physical memory that were read last, as they were in memory.

Who reads a structure reads its neighbours, too, and tables on the way to it again and again. drgn keeps pages, but
takes several times as long to unpack one that it hasn't kept (:mod:`kvmd.images.linux.kdumppages`), and nearly half of
the time from an open to a list of processes went into that.
"""

from __future__ import annotations

from collections.abc import Callable

_KEPT = 2 << 20  # bytes


class RecentPages:
    """Reads within a page.

    :param into: fills a buffer with physical memory, or answers that it can't.
    :param size: of a page, in bytes.
    """

    def __init__(self, into: Callable[[int, memoryview], bool], size: int) -> None:
        self._into, self._size = into, size
        self._most = max(1, _KEPT // size)
        self._pages: dict[int, bytes] = {}

    def read(self, address: int, length: int) -> bytes | None:
        """Read physical memory that does not reach over the end of its page; None if this can't.

        :raises KvmError: SOURCE_IO.
        """
        number, inside = divmod(address, self._size)
        page = self._pages.get(number)
        if page is None:
            data = bytearray(self._size)
            if not self._into(number * self._size, memoryview(data)):
                return None
            if len(self._pages) >= self._most:
                del self._pages[next(iter(self._pages))]
            page = self._pages[number] = bytes(data)
        return page[inside : inside + length]
