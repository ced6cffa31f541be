"""Objects of zsmalloc, the allocator of zram and, mostly, of zswap.

Source: Linux mm/zsmalloc.c (5.17 to 6.12): a handle points to a word with page frame and index; an object of a class's
size begins in that page and may end in the next one of its zspage; it begins with its handle, but for those of huge
zspages, where struct page has it. That word is checked: it proves that frame, index and class were understood.
"""

from __future__ import annotations

from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import LITTLE, number
from kvmd.images.linux.swap.frames import Frames

_MAGIC = 0x58  # ZSPAGE_MAGIC
_HANDLE = 8  # ZS_HANDLE_SIZE
_TAG = 1  # OBJ_ALLOCATED_TAG
_CLASSES = 1 << 8
_WIDE, _NARROW = 52, 46  # MAX_POSSIBLE_PHYSMEM_BITS of x86-64, with CONFIG_X86_5LEVEL and without


class Zsmalloc:
    """The objects of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames) -> None:
        self._frames, self._memory = frames, kernel.memory
        read = kernel.memory.kernel
        self._pool = Fields(kernel.prog, read, "struct zs_pool", {"first": ("size_class.0",)})
        self._class = Fields(kernel.prog, read, "struct size_class", {"size": ("size",)})
        with kernel.reading("zsmalloc's structures"):
            zspage = kernel.prog.type("struct zspage")
            members = {name: zspage.member(name) for name in ("huge", "class", "magic")}
            self._bits = {name: (m.bit_offset, m.bit_field_size or 0) for name, m in members.items()}
        wide = kernel.builtin("__pgtable_l5_enabled") is not None or kernel.info.number("MAX_PHYSMEM_BITS") is None
        physical = _WIDE if wide else _NARROW
        # The bits below the frame: the index, and until 6.5 or so the tag.
        self._below = 64 - (physical - frames.page_size.bit_length() + 1)

    def read(self, pool: int, handle: int, length: int) -> bytes:
        """Read the first bytes of an object.

        :param pool: the address of its struct zs_pool.
        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds it.
        """
        if not 0 < length <= self._frames.page_size:
            raise error(Reason.CORRUPT_DATA, f"an object of {length} bytes makes no sense", address=handle)
        word = self._memory.number(handle)
        address = self._frames.page(word >> self._below)
        page = self._frames.read(address)
        zspage = page["private"]
        if self._bit(zspage, "magic") != _MAGIC:
            raise error(Reason.CORRUPT_DATA, "a compressed page's place in memory makes no sense", address=handle)
        if self._bit(zspage, "huge"):
            if page["index"] & ~_TAG != handle:
                raise self._strange(handle)
            return self._memory.physical(self._frames.physical(address), length)
        size = self._size(pool, self._bit(zspage, "class"))
        if length + _HANDLE > size:
            raise self._strange(handle)
        low = word & (1 << self._below) - 1
        for index in (low, low >> 1):  # without the tag, and with it
            data = self._object(address, page["index"], size * index % self._frames.page_size, _HANDLE + length)
            if data is not None and number(data[:_HANDLE], self._memory.order) == handle | _TAG:
                return data[_HANDLE:]
        raise self._strange(handle)

    @staticmethod
    def _strange(handle: int) -> Exception:
        return error(Reason.CORRUPT_DATA, "a compressed page is not where its handle says", address=handle)

    def _bit(self, zspage: int, name: str) -> int:
        at, bits = self._bits[name]
        low = at % 32 if self._memory.order == LITTLE else 32 - at % 32 - bits
        value: int = self._memory.number(zspage + at // 32 * 4, 4) >> low & (1 << bits) - 1
        return value

    def _size(self, pool: int, which: int) -> int:
        if which >= _CLASSES:
            raise error(Reason.CORRUPT_DATA, f"there is no size class {which}", address=pool)
        known: Any = self._class(self._memory.number(pool + self._pool.offsets["first"] + 8 * which))
        size: int = known["size"]
        if not _HANDLE < size <= self._frames.page_size:
            raise error(Reason.CORRUPT_DATA, f"a class of objects of {size} bytes makes no sense", address=pool)
        return size

    def _object(self, page: int, following: int, offset: int, length: int) -> bytes | None:
        """Bytes from within a page, and where they don't fit, from the next one's beginning."""
        first = min(length, self._frames.page_size - offset)
        data = self._memory.physical(self._frames.physical(page) + offset, first)
        if first == length:
            return data
        if not following:
            return None
        return data + self._memory.physical(self._frames.physical(following), length - first)
