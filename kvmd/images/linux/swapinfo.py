"""The swap areas, as /proc/swaps lists them, and what else the kernel knows of each.

Source: Linux mm/swapfile.c (swap_start, swap_show; swap_usage_in_pages since 6.13) and include/linux/swap.h.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from drgn import TypeKind

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.paths import Paths, Place
from kvmd.v1 import system_pb2

_MAX_TYPES = 32  # 1 << MAX_SWAPFILES_SHIFT
_USED = 1  # SWP_USED
_OFF_LIST = 1 << 62 | 1 << 30  # SWAP_USAGE_OFFLIST_BIT, 30 in 6.13 and 62 by 7.2: of the counter, but counts nothing
_INFO = {name: (name,) for name in ("flags", "prio", "pages", "inuse_pages", "swap_file", "swap_map", "max", "bdev")}
_INFO |= {"extents": ("swap_extent_root.rb_node",), "zeromap": ("zeromap",), "clusters": ("cluster_info",)}
_FILE = {
    "mnt": ("f_path.mnt",),
    "dentry": ("f_path.dentry",),
    "inode": ("f_inode",),
    "mapping": ("f_mapping",),
}
_INODE = {"mode": ("i_mode",), "size": ("i_size",), "ino": ("i_ino",)}


class Area(NamedTuple):
    """A swap area that is in use.

    :ivar number: the type of its swap entries.
    :ivar slots: one more than the highest offset of a slot; slot 0 is the header. In pages, as all of the following.
    :ivar pages: how many slots can be used, ``used`` how many are.
    :ivar partition: whether it is a block device, and not a file of the size ``file_size`` (bytes).
    :ivar device: the address of the struct block_device that it is, or lies on; 0 if there is none.
    :ivar mapping: the address of the address_space whose first page is the header.
    :ivar extents: the address of the root of the tree of its extents.
    :ivar zeromap: the address of the bitmap of slots that hold zeros and were not written (6.12 to 6.19); 0 if there
        is none.
    :ivar clusters: the address of the array of its clusters; 0 if there is none.
    """

    number: int
    place: Place
    partition: bool
    slots: int
    pages: int
    used: int
    priority: int
    inode: int
    file_size: int
    device: int
    mapping: int
    extents: int
    zeromap: int
    clusters: int


class SwapAreas:
    """The swap areas of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        kernel.need_types()
        self._kernel = kernel
        self._read = kernel.memory.kernel
        self._info = self._fields("struct swap_info_struct", _INFO)
        self._file = self._fields("struct file", _FILE)
        self._inode = self._fields("struct inode", _INODE)
        with kernel.reading("the swap areas"):
            used = kernel.prog.type("struct swap_info_struct").member("inuse_pages").type
        self._mask = ~_OFF_LIST if used.kind is TypeKind.TYPEDEF else -1  # atomic_long_t since the bit is there

    def _fields(self, tag: str, wanted: Mapping[str, tuple[str, ...]]) -> Fields:
        return Fields(self._kernel.prog, self._read, tag, wanted)

    def areas(self) -> list[Area]:
        """The areas that are in use, those that are being turned off included, by number.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that describes an area.
        """
        found = []
        for number, address in self._pointers():
            info: dict[str, Any] = self._info(address)
            # Without SWP_USED it is a free slot, and one without its map is being set up (newer kernels have no map).
            if not info["flags"] & _USED or info["swap_map"] == 0 or not info["swap_file"]:
                continue
            found.append(self._area(number, info))
        return found

    def read(self, paths: Paths) -> list[system_pb2.SwapArea]:
        """List the areas, as :meth:`areas`."""
        page = self._kernel.dump.layout.page_size
        return [
            system_pb2.SwapArea(
                path=paths.path(area.place),
                number=area.number,
                kind="partition" if area.partition else "file",
                size_bytes=area.pages * page,
                used_bytes=area.used * page,
                priority=area.priority,
            )
            for area in self.areas()
        ]

    def _pointers(self) -> Iterator[tuple[int, int]]:
        """Walk ``swap_info[]``: (type, address of its swap_info_struct)."""
        if self._kernel.builtin("swap_info") is None and self._kernel.builtin("avenrun") is not None:
            return  # a kernel without CONFIG_SWAP
        table, limit = self._kernel.address("swap_info"), self._kernel.address("nr_swapfiles")
        count = self._kernel.memory.number(limit, 4)
        if count > _MAX_TYPES:
            raise error(Reason.CORRUPT_DATA, f"{count} is no number of swap areas", address=limit)
        for number, address in enumerate(self._kernel.memory.words(table, count)):
            if address:
                yield number, address

    def _area(self, number: int, info: dict[str, Any]) -> Area:
        file: dict[str, Any] = self._file(info["swap_file"])
        inode: dict[str, Any] = self._inode(file["inode"])
        return Area(
            number=number,
            place=(file["mnt"], file["dentry"]),
            partition=stat.S_ISBLK(inode["mode"]),
            slots=info["max"],
            pages=info["pages"],
            used=info["inuse_pages"] & self._mask & (1 << 63) - 1,
            priority=info["prio"],
            inode=inode["ino"],
            file_size=inode["size"],
            device=info["bdev"] or 0,
            mapping=file["mapping"],
            extents=info["extents"] or 0,
            zeromap=info["zeromap"] or 0,
            clusters=info["clusters"] or 0,
        )
