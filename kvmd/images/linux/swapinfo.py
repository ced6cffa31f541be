"""The swap areas, as /proc/swaps lists them.

Source: Linux mm/swapfile.c (swap_start, swap_show; swap_usage_in_pages since 6.13) and include/linux/swap.h.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from drgn import TypeKind

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.paths import Paths
from kvmd.v1 import system_pb2

_MAX_TYPES = 32  # 1 << MAX_SWAPFILES_SHIFT
_USED = 1  # SWP_USED
_OFF_LIST = 1 << 30  # SWAP_USAGE_OFFLIST_BIT, since 6.13 a bit of the counter that counts nothing


class SwapAreas:
    """The swap areas of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        kernel.need_types()
        self._kernel = kernel
        self._read = kernel.memory.kernel
        wanted = {name: (name,) for name in ("flags", "prio", "pages", "inuse_pages", "swap_file", "swap_map")}
        self._info = self._fields("struct swap_info_struct", wanted)
        file = {"mnt": ("f_path.mnt",), "dentry": ("f_path.dentry",), "inode": ("f_inode",)}
        self._file = self._fields("struct file", file)
        self._inode = self._fields("struct inode", {"mode": ("i_mode",)})
        with kernel.reading("the swap areas"):
            used = kernel.prog.type("struct swap_info_struct").member("inuse_pages").type
        self._mask = ~_OFF_LIST if used.kind is TypeKind.TYPEDEF else -1  # atomic_long_t since the bit is there

    def _fields(self, tag: str, wanted: Mapping[str, tuple[str, ...]]) -> Fields:
        return Fields(self._kernel.prog, self._read, tag, wanted)

    def read(self, paths: Paths) -> list[system_pb2.SwapArea]:
        """List the areas that are in use, those that are being turned off included, by number.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that describes an area.
        """
        found = []
        for number, address in self._pointers():
            info: dict[str, Any] = self._info(address)
            # Without SWP_USED it is a free slot, and one without its map is being set up (newer kernels have no map).
            if not info["flags"] & _USED or info["swap_map"] == 0 or not info["swap_file"]:
                continue
            found.append(self._area(number, info, paths))
        return found

    def _pointers(self) -> Iterator[tuple[int, int]]:
        """Walk ``swap_info[]``: (type, address of its swap_info_struct)."""
        if self._kernel.builtin("swap_info") is None and self._kernel.builtin("avenrun") is not None:
            return  # a kernel without CONFIG_SWAP
        table, limit = self._kernel.address("swap_info"), self._kernel.address("nr_swapfiles")
        count = int.from_bytes(self._read(limit, 4), "little")
        if count > _MAX_TYPES:
            raise error(Reason.CORRUPT_DATA, f"{count} is no number of swap areas", address=limit)
        for number, address in enumerate(struct.unpack(f"<{count}Q", self._read(table, 8 * count))):
            if address:
                yield number, address

    def _area(self, number: int, info: dict[str, Any], paths: Paths) -> system_pb2.SwapArea:
        file: dict[str, Any] = self._file(info["swap_file"])
        mode: Any = self._inode(file["inode"])["mode"]
        page = self._kernel.dump.layout.page_size
        return system_pb2.SwapArea(
            path=paths.path((file["mnt"], file["dentry"])),
            number=number,
            kind="partition" if stat.S_ISBLK(mode) else "file",
            size_bytes=info["pages"] * page,
            used_bytes=(info["inuse_pages"] & self._mask & (1 << 63) - 1) * page,
            priority=info["prio"],
        )
