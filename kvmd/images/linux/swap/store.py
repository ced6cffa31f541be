"""A file with the content of a swap area, or of the device that one lies on."""

from __future__ import annotations

import errno
import mmap
import os
from functools import cached_property

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK, File


class Store:
    """Reads of one file, by its descriptor, which stays the caller's.

    :param direct: whether to read past the page cache, which does not know what the kernel swaps: the descriptor was
        opened with O_DIRECT.
    """

    def __init__(self, file: File, *, direct: bool = False) -> None:
        self.name = file.name
        self._fd = file.fd
        # Memory that begins with a page, as O_DIRECT wants it.
        self._buffer = mmap.mmap(-1, CHUNK, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if direct else None

    @cached_property
    def size(self) -> int:
        """In bytes, also of a block device."""
        return os.lseek(self._fd, 0, os.SEEK_END)

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly; at most a chunk, and in whole pages where it is direct.

        :raises KvmError: SHORT_FILE, SOURCE_IO.
        """
        try:
            data = self._some(offset, length)
            while len(data) < length and (more := self._some(offset + len(data), length - len(data))):
                data += more
        except OSError as e:
            raise self._failure(e) from e
        if len(data) < length:
            message = f"{self.name} ends before the slot at {offset:#x}"
            raise error(Reason.SHORT_FILE, message, path=self.name)
        return data

    def _some(self, offset: int, length: int) -> bytes:
        if self._buffer is None:
            return os.pread(self._fd, length, offset)
        with memoryview(self._buffer)[:length] as view:
            return bytes(view[: os.preadv(self._fd, [view], offset)])

    def _failure(self, e: OSError) -> KvmError:
        code = errno.errorcode.get(e.errno or 0, "EIO")
        return error(Reason.SOURCE_IO, f"{self.name} can't be read: {e.strerror}", path=self.name, errno=code)
