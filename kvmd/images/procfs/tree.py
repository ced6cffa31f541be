"""Reads /proc below a directory descriptor: nothing is opened for writing, no symbolic link is followed.

A directory of a process stays that process's: once it has ended, reads below it fail with ESRCH, and a new
process that gets the same number is never taken for it (proc(5)).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from kvmd.errors import KvmError, Reason, error

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_ENTER = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 1 << 16
_REASONS: tuple[tuple[type[OSError], Reason], ...] = (
    (FileNotFoundError, Reason.SOURCE_NOT_FOUND),
    (PermissionError, Reason.SOURCE_ACCESS),
)

GONE = (FileNotFoundError, ProcessLookupError, NotADirectoryError)
"""What reads of a process's files fail with once it has ended, and where it is hidden (hidepid=2)."""
UNSEEN = (*GONE, PermissionError)
"""The same, and what a process of somebody else's fails with."""


def read(directory: int, name: str, most: int) -> bytes:
    """Read a file to its end, or its first ``most`` bytes.

    :raises OSError: as open(2) and read(2) do.
    """
    fd = os.open(name, _READ, dir_fd=directory)
    try:
        data = bytearray()
        while len(data) < most and (piece := os.read(fd, min(most - len(data), _PIECE))):
            data += piece
        return bytes(data)
    finally:
        os.close(fd)


def source(directory: int, name: str, most: int) -> bytes:
    """Read a file that isn't a process's, as :func:`read`.

    :raises KvmError: SOURCE_NOT_FOUND (a /proc with ``subset=pid`` has none of them), SOURCE_ACCESS, SOURCE_IO.
    """
    try:
        return read(directory, name, most)
    except OSError as failure:
        raise unreadable(f"/proc/{name}", failure) from None


def unreadable(path: str, failure: OSError) -> KvmError:
    """The error for a file or directory that can't be read."""
    reason = next((reason for kind, reason in _REASONS if isinstance(failure, kind)), Reason.SOURCE_IO)
    code = failure.errno or errno.EIO
    message = f"{path}: {os.strerror(code)}"
    return error(reason, message, path=path, errno=errno.errorcode.get(code, "EIO"))


@contextmanager
def entered(directory: int, name: str) -> Iterator[int]:
    """A descriptor of a directory, for reads below it.

    :raises OSError: as open(2) does.
    """
    fd = os.open(name, _ENTER, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def numbers(directory: int, name: str = ".") -> list[int]:
    """The entries of a directory that are decimal numbers, ascending: processes, threads, descriptors.

    :raises OSError: as open(2) and getdents(2) do.
    """
    fd = os.open(name, _LIST, dir_fd=directory)
    try:
        return sorted(int(entry) for entry in os.listdir(fd) if entry.isascii() and entry.isdigit())
    finally:
        os.close(fd)
