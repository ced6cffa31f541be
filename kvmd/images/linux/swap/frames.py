"""struct page: where in memory a page lies that the kernel points to, and what its flags say.

Source: Linux include/linux/mm_types.h, page-flags.h; include/asm-generic/memory_model.h (vmemmap). In newer kernels a
folio is its first page.
"""

from __future__ import annotations

from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel

_FLAGS = ("uptodate", "dirty", "writeback", "locked", "head")
_UNMAPPED = (1 << 32) - 1  # of page->_mapcount


class Frames:
    """The page frames of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.page_size = kernel.dump.layout.page_size
        with kernel.reading("the page frames"):
            self._base: int = kernel.prog["vmemmap"].value_()
            self._size: int = kernel.prog.type("struct page").size or 0
            bits: dict[str, int] = {name: kernel.prog[f"PG_{name}"].value_() for name in _FLAGS}
        self._uptodate, *others = (1 << bits[name] for name in _FLAGS)
        self._busy = sum(others)
        wanted = {
            "flags": ("flags.f", "flags"),  # memdesc_flags_t since 6.18
            "private": ("private",),
            "index": ("index", "__folio_index"),
            "head": ("compound_head",),
            "mapped": ("_mapcount",),
        }
        self._page = Fields(kernel.prog, kernel.memory.kernel, "struct page", wanted)

    def read(self, page: int) -> dict[str, Any]:
        """The struct page at an address."""
        return self._page(page)

    def ready(self, page: dict[str, Any]) -> bool:
        """Whether the page holds what it should, and isn't just being read from somewhere."""
        return bool(page["flags"] & self._uptodate)

    def settled(self, page: dict[str, Any]) -> bool:
        """Whether the page is a single one that nobody can have changed since it was last read or written."""
        flags: int = page["flags"] & (self._uptodate | self._busy)
        mapped: int = page["mapped"] & _UNMAPPED
        return flags == self._uptodate and mapped == _UNMAPPED

    def physical(self, page: int) -> int:
        """Where the page of a struct page lies.

        :raises KvmError: CORRUPT_DATA if there is no such struct page.
        """
        number, rest = divmod(page - self._base, max(self._size, 1))
        if rest or not 0 <= number < 1 << 40:
            raise error(Reason.CORRUPT_DATA, f"{page:#x} is no page of the kernel's", address=page)
        return number * self.page_size

    def page(self, frame: int) -> int:
        """The address of a frame's struct page."""
        return self._base + frame * self._size & (1 << 64) - 1

    def after(self, page: int, count: int) -> int:
        """The address of the struct page so many pages on."""
        return page + count * self._size
