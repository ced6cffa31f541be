"""Writes to the running kernel's memory, by /dev/mem opened for writing.

A virtual address is translated through the kernel's page tables when it is written, page by page; what the tables call
read-only (code, constants) is written all the same, as /dev/mem knows physical addresses only. Nothing but RAM is
written. A write is not atomic, not even of a word (Linux drivers/char/mem.c copies bytes).
"""

from __future__ import annotations

import errno
import os

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK, File
from kvmd.images.linux.layout import Layout
from kvmd.images.linux.live_devmem import strict_devmem
from kvmd.images.linux.memory import Memory


class Writer:
    """Writes kernel memory.

    :param mem: /dev/mem, open for writing.
    :param layout: tells RAM from what is none.
    """

    def __init__(self, mem: File, memory: Memory, layout: Layout) -> None:
        self._fd = mem.fd
        self._memory = memory
        self._layout = layout

    def write(self, address: int, data: bytes) -> None:
        """Write all of ``data`` at a kernel virtual address, or raise with metadata ``written``.

        :raises KvmError: NOT_MAPPED, NOT_PRESENT, BEYOND_DUMP (no RAM), STRICT_DEVMEM, SOURCE_IO; BAD_ARGUMENT.
        """
        if not 0 <= address <= address + len(data) <= 1 << 64 or len(data) > CHUNK:
            raise error(Reason.BAD_ARGUMENT, f"a write of {len(data)} bytes at {address:#x} makes no sense")
        done = 0
        try:
            while done < len(data):
                done += self._piece(address + done, data[done:])
        except KvmError as e:
            e.metadata["written"] = str(done)
            raise

    def _piece(self, address: int, data: bytes) -> int:
        page = self._layout.page_size
        place = self._memory.translate(address)
        if self._layout.trouble(place.physical) is not None:
            message = f"{address:#x} lies at {place.physical:#x}, which is no RAM; devices are not written"
            raise error(Reason.BEYOND_DUMP, message, address=address)
        piece = data[: min(place.length, page - place.physical % page)]
        try:
            written = os.pwrite(self._fd, piece, place.physical)
        except OSError as e:
            if e.errno == errno.EPERM:
                raise strict_devmem(address) from e
            message = f"/dev/mem can't be written: {e.strerror}"
            raise error(
                Reason.SOURCE_IO, message, address=address, errno=errno.errorcode.get(e.errno or 0, "EIO")
            ) from e
        if not written:
            raise error(Reason.SOURCE_IO, "/dev/mem took no byte", address=address)
        return written
