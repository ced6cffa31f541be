"""The block devices of swap areas. Source: Linux include/linux/blk_types.h and blkdev.h (5.11 to 6.12)."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel

_SECTOR = 512
_MINOR_BITS = 20


class BlockDevice(NamedTuple):
    """A block device.

    :ivar number: as makedev(3) packs it.
    :ivar size: in bytes; None where the kernel keeps it elsewhere.
    :ivar disk: the address of its gendisk, and ``private`` what its driver keeps there; ``name`` the disk's.
    """

    number: int
    size: int | None
    disk: int
    private: int
    name: bytes


class BlockDevices:
    """The block devices of one kernel.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        read = kernel.memory.kernel
        wanted = {"sectors": ("bd_nr_sectors",), "device": ("bd_dev",), "disk": ("bd_disk",)}
        self._device = Fields(kernel.prog, read, "struct block_device", wanted)
        wanted = {"private": ("private_data",), "name": ("disk_name",)}
        self._disk = Fields(kernel.prog, read, "struct gendisk", wanted)

    def read(self, address: int) -> BlockDevice:
        """Describe the struct block_device at an address.

        :raises KvmError: the fault of a page that holds it.
        """
        known: Any = self._device(address)
        disk: Any = self._disk(known["disk"])
        number = os.makedev(known["device"] >> _MINOR_BITS, known["device"] & (1 << _MINOR_BITS) - 1)
        size = None if known["sectors"] is None else known["sectors"] * _SECTOR
        return BlockDevice(number, size, known["disk"], disk["private"], disk["name"].split(b"\0")[0])
