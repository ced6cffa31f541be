"""Reads of the small files that go with the running kernel. They are made anew at each read, and have no size."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from kvmd.errors import Reason, error
from kvmd.images.base import File

_PIECE = 64 << 10


def pieces(file: File, limit: int) -> Iterator[bytes]:
    """Read a file from its start to its end, as it comes; the descriptor's position is neither used nor moved.

    :raises KvmError: SOURCE_IO if it can't be read, or is longer than ``limit`` bytes.
    """
    done = 0
    try:
        while part := os.pread(file.fd, _PIECE, done):
            done += len(part)
            if done > limit:
                raise error(Reason.SOURCE_IO, f"{file.name} is longer than {limit} bytes", path=file.name)
            yield part  # a seq_file gives a page at a time
    except OSError as e:
        raise error(
            Reason.SOURCE_IO,
            f"{file.name}: {e.strerror}",
            path=file.name,
            errno=errno.errorcode.get(e.errno or 0, "EIO"),
        ) from e


def whole(file: File, limit: int) -> bytes:
    """All of a file: see :func:`pieces`."""
    return b"".join(pieces(file, limit))


def lines(file: File, limit: int, most: int) -> Iterator[bytes]:
    """A file in pieces of ``most`` bytes or a little more, each of whole lines; the last may lack its end."""
    parts: list[bytes] = []
    for part in pieces(file, limit):
        parts.append(part)
        if sum(map(len, parts)) >= most and b"\n" in part:
            text, _, rest = b"".join(parts).rpartition(b"\n")
            yield text + b"\n"
            parts = [rest]
    if any(parts):
        yield b"".join(parts)
