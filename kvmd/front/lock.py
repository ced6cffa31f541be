"""Where the public socket's path may be, and the lock that keeps a second instance away from it.

Sources: unix(7), flock(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Self

from kvmd.fast import SUFFIX

PRIVATE_SUFFIX = ".private"
PRIVATE_NAME = "grpc"
MAX_PATH = 107 - len(f"{PRIVATE_SUFFIX}/{PRIVATE_NAME}")
"""The longest public path, in bytes: sun_path holds 107 and a NUL, and grpc's private socket lives beside it."""


class ListenError(Exception):
    """The daemon can't have its socket; the message is one line for the operator."""


class InstanceLock:
    """``PATH.lock``, held from start to the end of the process; a context manager.

    The file stays when the lock is let go: to unlink it would let a second instance lock a new file of the
    same name while a third still waits on the old one.
    """

    def __init__(self, path: str) -> None:
        """Take the lock.

        :param path: the public socket's path.
        :raises ListenError: another instance holds it.
        """
        check_path(path)
        make_parent(path)
        self.path = path
        name = f"{path}.lock"
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as failure:
            raise ListenError(f"can't open {name}: {failure.strerror}") from failure
        self._fd: int | None = fd
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        except OSError as failure:
            message = self._blame(failure, fd)
            self.release()
            raise ListenError(message) from failure

    def _blame(self, failure: OSError, fd: int) -> str:
        if failure.errno != errno.EWOULDBLOCK:
            return f"can't lock {self.path}.lock: {failure.strerror}"
        owner = os.pread(fd, 16, 0).strip()
        who = f" (process {owner.decode()})" if owner.isdigit() else ""
        return f"another kvmd{who} serves {self.path}: stop it, or choose another path"

    def guards(self, path: str) -> bool:
        """Whether a socket at this path is this instance's alone: the public one, or that of the fast path."""
        return self.held and path.removesuffix(SUFFIX) == self.path

    @property
    def held(self) -> bool:
        """Whether the lock is held."""
        return self._fd is not None

    def release(self) -> None:
        """Let the lock go; a second call does nothing."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


def check_path(path: str) -> None:
    """Refuse a path that a socket can't have.

    :raises ListenError: it is relative, or too long.
    """
    length = len(os.fsencode(path))
    if not os.path.isabs(path) or "\0" in path:
        raise ListenError(f"the socket's path {path!r} is not absolute")
    if length > MAX_PATH:
        raise ListenError(f"the socket's path is {length} bytes long, and {MAX_PATH} is the most: {path}")


def make_parent(path: str) -> None:
    """Make the directory of ``path`` if it isn't there; refuse one in which anybody may replace what we make."""
    parent = os.path.dirname(path)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(parent, 0o755)
        mode = os.stat(parent).st_mode
    except OSError as failure:
        raise ListenError(f"can't make {parent}: {failure.strerror}") from failure
    if not stat.S_ISDIR(mode):
        raise ListenError(f"{parent} is not a directory")
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise ListenError(f"{parent} is writable by everybody: anybody could put a socket in the daemon's place")
