"""Memory that a worker writes and clients read: the window of each, and the page cache of an image.

Sources: memfd_create(2), fcntl(2). Nobody can change a memfd's size, so that no reader meets SIGBUS; and once the
worker has mapped it, nobody can map it writable any more (F_SEAL_FUTURE_WRITE, Linux 5.1).
"""

from __future__ import annotations

import fcntl
import mmap
import os

_F_SEAL_FUTURE_WRITE = 0x10
_MFD_NOEXEC_SEAL = 8  # Linux 6.3; a sysctl may demand it


class Shared:
    """A memfd of a fixed size."""

    def __init__(self, name: str, size: int) -> None:
        """Make one; a page of it takes memory from the moment it is written to.

        :raises OSError: there is no descriptor left.
        """
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        try:
            self.fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
        except OSError:
            self.fd = os.memfd_create(name, flags)
        self.size = size
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except BaseException:
            self.close()
            raise

    def seal(self) -> None:
        """From here on only who has mapped it can write it."""
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)

    def map(self, offset: int, length: int) -> mmap.mmap:
        """Map some of it, to write; before it is sealed."""
        return mmap.mmap(self.fd, length, offset=offset)

    def close(self) -> None:
        """Give the descriptor back; what is mapped stays. A second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
