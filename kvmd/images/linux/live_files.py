"""Reads of the small files that go with the running kernel. They are made anew at each read, and have no size."""

from __future__ import annotations

import errno
import os

from kvmd.errors import Reason, error
from kvmd.images.base import File

_PIECE = 64 << 10


def whole(file: File, limit: int) -> bytes:
    """Read a file from its start to its end; the descriptor's position is neither used nor moved.

    :raises KvmError: SOURCE_IO if it can't be read, or is longer than ``limit`` bytes.
    """
    parts: list[bytes] = []  # a seq_file gives a page at a time, for which room for more would be made in vain
    done = 0
    try:
        while part := os.pread(file.fd, _PIECE, done):
            parts.append(part)
            done += len(part)
            if done > limit:
                raise error(Reason.SOURCE_IO, f"{file.name} is longer than {limit} bytes", path=file.name)
    except OSError as e:
        raise error(
            Reason.SOURCE_IO,
            f"{file.name}: {e.strerror}",
            path=file.name,
            errno=errno.errorcode.get(e.errno or 0, "EIO"),
        ) from e
    return b"".join(parts)
