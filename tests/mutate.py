"""A small dump whose memory a test changes: of KDUMP files that hold their pages as they are."""

from __future__ import annotations

import os
from pathlib import Path

from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kdump import KdumpLayout
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.source import FileSource

PAGE = 4096


class Mutable:
    """The bytes of a dump, and where in them memory lies.

    :param kernel: the same dump opened, which translates addresses.
    """

    def __init__(self, path: Path, kernel: Kernel) -> None:
        self.data = bytearray(path.read_bytes())
        self._kernel = kernel
        self._fd = os.open(path, os.O_RDONLY)
        self._layout = KdumpLayout(FileSource(self._fd))

    def close(self) -> None:
        os.close(self._fd)

    def physical(self, address: int, data: bytes) -> None:
        """Overwrite memory, within a page that the dump holds."""
        assert address % PAGE + len(data) <= PAGE
        assert self._layout.trouble(address) is None, hex(address)
        offset, size = self._layout._descriptor(address // PAGE)
        assert size == PAGE
        at = offset + address % PAGE
        self.data[at : at + len(data)] = data

    def kernel(self, address: int, data: bytes) -> None:
        """Overwrite kernel memory."""
        while data:
            size = min(len(data), PAGE - address % PAGE)
            self.physical(self._kernel.memory.translate(address).physical, data[:size])
            address, data = address + size, data[size:]

    def word(self, address: int, value: int, size: int = 8) -> None:
        """Overwrite an integer of the kernel's."""
        self.kernel(address, value.to_bytes(size, "little"))


def mutable(path: Path, image: LinuxImage) -> Mutable:
    """What to change of a dump."""
    return Mutable(path, image.kernel)
