"""Indexes of kernel builds, kept in a directory of the daemon's own; what is in them it doesn't know.

A file is SHA-256 of all that follows, and the index. It is named after the build, replaced as a whole, and copied into
sealed memory before it is given to anybody. What others could have written, or what is damaged, is removed; what has
another name than an index is never touched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from types import TracebackType
from typing import Self

log = logging.getLogger(__name__)

MOST = 24 << 20
"""The longest index, in bytes: an answer of a worker's."""
MOST_FILES = 1024
"""As many are kept at most, however short: a dump may claim any build, and each file is looked at to make room."""
_DIGEST = 32
"""The size of SHA-256, in bytes."""
_NAME = re.compile("[0-9a-f]{16,64}")
_PART = ".new-"
_OURS = re.compile(f"{_NAME.pattern}|{re.escape(_PART)}[0-9a-f]{{16}}")
_WRITING = 60.0  # seconds in which one is surely written
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class UnfitError(OSError):
    """A directory or file that others than the daemon could have written."""


class Kept:
    """Bytes in memory that nobody can change any more.

    :ivar fd: its descriptor.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self.fd = os.memfd_create("kvmd-index", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self.fd, rest) :]
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        os.close(self.fd)


class Indexes:
    """The directory. Its methods wait for a disk; several daemons may use one.

    :param path: where it is; made if it isn't there.
    :param most: what its files may take in all, in bytes; the ones that were used least lately go first.
    :raises OSError: it can't be had, or it isn't the daemon's alone (:class:`UnfitError`).
    """

    def __init__(self, path: str, most: int) -> None:
        self._most = most
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check(os.fstat(self._fd), path)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)

    def find(self, build_id: str) -> Kept | None:
        """The index of a build, if there is one that is whole."""
        if not _NAME.fullmatch(build_id):
            return None
        try:
            return Kept(self._read(build_id))
        except FileNotFoundError:
            return None
        except OSError as failure:
            log.warning("an index is not used: %s", failure)
            if isinstance(failure, UnfitError):  # else the disk's, or memory's: the file may be good
                self._remove(build_id)
            return None

    def _read(self, name: str) -> memoryview:
        try:
            fd = os.open(name, _READ, dir_fd=self._fd)
        except OSError as failure:
            if failure.errno in (errno.ELOOP, errno.ENXIO):
                raise UnfitError(f"{name} is none") from None
            raise
        with open(fd, "rb", buffering=0) as file:
            status = os.fstat(fd)
            _check(status, name)
            fit = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1  # 0: just replaced
            if not fit or not _DIGEST < status.st_size <= MOST + _DIGEST:
                raise UnfitError(f"{name} is none")
            whole = memoryview(file.read(status.st_size))
            if hashlib.sha256(whole[_DIGEST:]).digest() != whole[:_DIGEST]:
                raise UnfitError(f"{name} is damaged")
            with contextlib.suppress(OSError):  # a disk that is read-only: it is as good
                os.utime(fd)
        return whole[_DIGEST:]

    def keep(self, build_id: str, data: bytes) -> None:
        """Keep the index of a build, instead of any other.

        :raises OSError: it can't be written.
        """
        if not _NAME.fullmatch(build_id) or not 0 < len(data) <= MOST:
            raise UnfitError(f"no index of {build_id[:64]!r}, of {len(data)} bytes")
        part = f"{_PART}{os.urandom(8).hex()}"
        fd = os.open(part, _WRITE, 0o600, dir_fd=self._fd)
        try:
            with open(fd, "wb", buffering=0) as file:
                rest = memoryview(hashlib.sha256(data).digest() + data)
                while rest:
                    rest = rest[file.write(rest) :]
            os.rename(part, build_id, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            self._remove(part)
            raise
        self._evict(build_id)

    def _evict(self, newest: str) -> None:
        """Remove what was used least lately, until the rest is not too much; what is being written stays."""
        found, now = [], time.time()
        for name in os.listdir(self._fd):
            with contextlib.suppress(FileNotFoundError):  # another daemon's doing
                if not _OURS.fullmatch(name):
                    continue
                status = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
                if name.startswith(_PART) and status.st_mtime > now - _WRITING:
                    continue
                found.append((name == newest, status.st_mtime_ns, name, status.st_size))
        total, count = sum(size for *_, size in found), len(found)
        for _, _, name, size in sorted(found):
            if total <= self._most and count <= MOST_FILES:
                return
            self._remove(name)
            total, count = total - size, count - 1

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)


def _check(status: os.stat_result, name: str) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise UnfitError(f"{name} must belong to the daemon's user, and nobody else may have any access")
