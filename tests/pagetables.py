"""Memory with page tables that a test makes: of any layout, for readers of physical memory."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

from kvmd.images.linux.pagetable import Paging
from kvmd.images.linux.paging_x86 import X86Paging


class Tables:
    """Physical memory, in pages of the layout's size; tables are added from an address on.

    :ivar root: the physical address of the top-level table.
    """

    def __init__(self, paging: Paging, root: int, tables: int) -> None:
        self.paging, self.root, self._next = paging, root, tables
        self.pages: dict[int, bytearray] = {root: bytearray(paging.page_size)}
        x86 = isinstance(paging, X86Paging)
        self._table, self._page = (0x63, 0x63) if x86 else (3, 0x403)

    def map(self, virtual: int, physical: int, level: int = 1) -> None:
        """Map one page; of a level above 1 a large one."""
        table = self.root
        for at in range(self.paging.levels, level, -1):
            place = 8 * self.paging.index(virtual, at)
            entry = int.from_bytes(self.pages[table][place : place + 8], "little")
            below = self.paging.table(entry, at) if entry else None
            if below is None:
                below, self._next = self._next, self._next + self.paging.page_size
                self.pages[below] = bytearray(self.paging.page_size)
                self.pages[table][place : place + 8] = (below | self._table).to_bytes(8, "little")
            table = below
        place = 8 * self.paging.index(virtual, level)
        entry = physical | self._page
        if level > 1:
            entry = physical | (0xE3 if self._page == 0x63 else 0x401)
        self.pages[table][place : place + 8] = entry.to_bytes(8, "little")

    def hold(self, places: Iterable[int]) -> None:
        """Have pages, empty where they are none of the tables."""
        for place in places:
            self.pages.setdefault(place & -self.paging.page_size, bytearray(self.paging.page_size))

    def word(self, physical: int, value: int) -> None:
        """Overwrite a word."""
        struct.pack_into("<Q", self.pages[physical & -self.paging.page_size], physical % self.paging.page_size, value)

    @property
    def runs(self) -> list[range]:
        """What there is."""
        runs: list[range] = []
        for at in sorted(self.pages):
            if runs and runs[-1].stop == at:
                runs[-1] = range(runs[-1].start, at + self.paging.page_size)
            else:
                runs.append(range(at, at + self.paging.page_size))
        return runs

    @property
    def read(self) -> Callable[[int, int], bytes | None]:
        """Reads as :data:`~kvmd.images.linux.scan.search.Read`."""
        size = self.paging.page_size

        def read(address: int, length: int) -> bytes | None:
            found = b""
            for page in range(address & -size, address + length, size):
                if page not in self.pages:
                    return None
                low, high = max(address - page, 0), min(address + length - page, size)
                found += self.pages[page][low:high]
            return found

        return read
