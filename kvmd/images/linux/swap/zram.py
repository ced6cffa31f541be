"""zram: a block device in memory, each page compressed, of one word, or as it is.

Source: Linux drivers/block/zram/zram_drv.h and .c (5.10 to 6.12): ``table[page]`` has a handle and flags, whose lower
bits are the object's size.
"""

from __future__ import annotations

import struct
from typing import Any

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.swap.codecs import decompress
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.zsmalloc import Zsmalloc

_NAME = 16
_PRIORITIES = 4
_ZRAM = {
    "table": ("table",),
    "pool": ("mem_pool",),
    "disk": ("disk",),
    "size": ("disksize",),
    "name": ("compressor",),
}
_ZRAM |= {f"name{i}": (f"comp_algs.{i}",) for i in range(_PRIORITIES)}
_ZRAM |= {f"dictionary{i}": (f"params.{i}.dict",) for i in range(_PRIORITIES)}
_FLAGS = ("ZRAM_SAME", "ZRAM_WB", "ZRAM_HUGE")
_PRIORITY = "ZRAM_COMP_PRIORITY_BIT1"


class Zram:
    """The zram devices of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, frames: Frames) -> None:
        self._read, self._page, self._order = kernel.memory.kernel, frames.page_size, kernel.memory.order
        self._objects = Zsmalloc(kernel, frames)
        self._zram = Fields(kernel.prog, self._read, "struct zram", _ZRAM)
        wanted = {"handle": ("handle", "element"), "flags": ("flags", "attr.flags")}
        self._entry = Fields(kernel.prog, self._read, "struct zram_table_entry", wanted)
        with kernel.reading("zram's structures"):
            self._stride = kernel.prog.type("struct zram_table_entry").size
            flags = dict(kernel.prog.type("enum zram_pageflags").enumerators or ())
            self._flags = {name: 1 << flags[name] for name in _FLAGS}
            self._priority = flags.get(_PRIORITY)
            # ZRAM_FLAG_SHIFT: the first flag's number (24 until 5.16, PAGE_SHIFT + 1 since).
            self._sizes = (1 << min(flags.values())) - 1

    def device(self, disk: int, private: int) -> Device | None:
        """The device of a gendisk and its private data; None if that is no zram in use."""
        zram: Any = self._zram(private)
        return Device(self, zram) if zram["disk"] == disk and zram["table"] else None

    def read(self, zram: dict[str, Any], page: int) -> bytes:
        """Read a page of a device.

        :raises KvmError: NOT_PRESENT, CORRUPT_PAGE, CORRUPT_DATA, or the fault of a page that holds it.
        """
        if not 0 <= page < zram["size"] // self._page:
            raise error(Reason.CORRUPT_DATA, f"a zram device has no page {page}")
        entry: Any = self._entry(zram["table"] + page * self._stride)
        handle, flags = entry["handle"], entry["flags"]
        if flags & self._flags["ZRAM_WB"]:
            raise error(Reason.NOT_PRESENT, "in zram, written back to a device that is not given")
        if not handle or flags & self._flags["ZRAM_SAME"]:
            return struct.pack(self._order + "Q", handle) * (self._page // 8)
        size = flags & self._sizes
        data = self._objects.read(zram["pool"], handle, size)
        if size == self._page:
            return data
        return decompress("zram", self._compressor(zram, flags), data, self._page)

    def _compressor(self, zram: dict[str, Any], flags: int) -> str:
        name: bytes | None = zram["name"]
        if name is None:
            priority = 0 if self._priority is None else flags >> self._priority & _PRIORITIES - 1
            name = self._read(zram[f"name{priority}"] or 0, _NAME)
            if zram[f"dictionary{priority}"]:
                name = name.split(b"\0")[0] + b" with a dictionary"
        return name.split(b"\0")[0].decode("ascii", "replace")


class Device:
    """One zram device."""

    def __init__(self, zrams: Zram, zram: dict[str, Any]) -> None:
        self._zrams, self._zram = zrams, zram

    def read(self, page: int) -> bytes:
        """See :meth:`Zram.read`."""
        return self._zrams.read(self._zram, page)
