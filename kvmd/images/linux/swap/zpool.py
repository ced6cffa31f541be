"""Where zswap keeps what it compressed: zbud, z3fold and zsmalloc.

Source: Linux mm/zpool.c, mm/zbud.c, mm/z3fold.c (5.10 to 6.11), mm/zswap.c. A handle of zbud is the address of the
data; one of z3fold that of a slot, whose word has the address of the header and the number of the buddy, or, with its
lowest bit, the data's page itself.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.zsmalloc import Zsmalloc

_NAME = 16
_CHUNK = 64  # CHUNK_SIZE: PAGE_SIZE >> NCHUNKS_ORDER
_HEADLESS = 1  # 1 << PAGE_HEADLESS
_BUDDIES = 3  # BUDDY_MASK
_FIRST, _MIDDLE, _LAST = 1, 2, 3
_CHUNKS_SHIFT = 2  # BUDDY_SHIFT
_ALL = (1 << 64) - 1


class Pools:
    """The pools of one kernel's zswap.

    :ivar raw: whether data of a page's length are not compressed.
    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames) -> None:
        self._kernel, self._frames = kernel, frames
        self._read = kernel.memory.kernel
        # Since 6.18 there is zsmalloc alone, and pages that don't compress are kept as they are.
        self.raw = not _has(kernel, "struct zpool")
        if self.raw:
            return
        wanted = {"driver": ("driver",), "pool": ("pool",), "evictable": ("evictable",)}
        self._pool = Fields(kernel.prog, self._read, "struct zpool", wanted)
        self._driver = Fields(kernel.prog, self._read, "struct zpool_driver", {"type": ("type",)})
        # Until 6.4, pools that write back themselves keep the slot's number before the data.
        self._prefix = kernel.prog.type("struct zswap_header").size if _has(kernel, "struct zswap_header") else 0

    @cached_property
    def _zsmalloc(self) -> Zsmalloc:
        return Zsmalloc(self._kernel, self._frames)

    def read(self, zpool: int, handle: int, length: int) -> bytes:
        """Read what a handle stands for.

        :param zpool: the address of the struct zpool; since 6.18 of the struct zs_pool.
        :raises KvmError: CORRUPT_DATA, UNSUPPORTED for other pools, NO_TYPES, or the fault of a page that holds it.
        """
        if not 0 < length <= self._frames.page_size:
            raise error(Reason.CORRUPT_DATA, f"a compressed page of {length} bytes makes no sense", address=handle)
        if self.raw:
            return self._zsmalloc.read(zpool, handle, length)
        known: Any = self._pool(zpool)
        prefix = self._prefix if known["evictable"] else 0
        driver: Any = self._driver(known["driver"])
        name = self._read(driver["type"], _NAME).split(b"\0")[0]
        if name == b"zbud":
            data = self._read(handle, prefix + length)
        elif name == b"zsmalloc":
            data = self._zsmalloc.read(known["pool"], handle, prefix + length)
        elif name == b"z3fold":
            data = self._read(self._z3fold(handle), prefix + length)
        else:
            message = f"in zswap, in a pool of a kind that is not known: {name.decode('ascii', 'replace')}"
            raise error(Reason.UNSUPPORTED, message)
        return data[prefix:]

    @cached_property
    def _header(self) -> tuple[Fields, int]:
        """z3fold's header, and its size in whole chunks."""
        wanted = {"first": ("first_num",), "middle": ("start_middle",)}
        fields = Fields(self._kernel.prog, self._read, "struct z3fold_header", wanted)
        return fields, -(-self._kernel.prog.type("struct z3fold_header").size // _CHUNK) * _CHUNK

    def _z3fold(self, handle: int) -> int:
        page = self._frames.page_size
        if handle & _HEADLESS:
            return handle & -page & _ALL
        word = self._kernel.memory.number(handle)
        start = word & -page & _ALL
        fields, size = self._header
        known: Any = fields(start)
        buddy = word - (known["first"] & _BUDDIES) & _BUDDIES
        if buddy == _FIRST:
            return start + size
        if buddy == _MIDDLE:
            return start + int(known["middle"]) * _CHUNK
        if buddy == _LAST:
            return start + page - ((word & page - 1) >> _CHUNKS_SHIFT) * _CHUNK
        raise error(Reason.CORRUPT_DATA, "a z3fold page's handle makes no sense", address=handle)


def _has(kernel: Kernel, tag: str) -> bool:
    try:
        kernel.prog.type(tag)
    except LookupError:
        return False
    return True
