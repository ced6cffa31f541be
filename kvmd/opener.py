"""From the names that clients give to open files: the only module that opens a client-named path.

The daemon may read files that its clients may not, so a name is a request to be tricked (a confused deputy).
A name is first judged as text, then resolved below an allowed directory with openat2(2), without following any
symbolic link, to a descriptor that can't be read (O_PATH); only once that is known to be a regular file is the
same inode opened. So a FIFO or a device is never opened, and nothing that is renamed meanwhile changes what is.

Sources: openat2(2), open(2), path_resolution(7), proc_pid_fd(5), proc_sys_fs(5) (protected_hardlinks). The calls can
block on a network file system.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self

from kvmd import syscalls
from kvmd.errors import KvmError, Reason, error
from kvmd.record import Record

MAX_NAME = 1024
"""PATH_MAX of the BSDs: a name of so many bytes or more is too long, as it is for kvm_open(3)."""

_STRICT = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_NO_MAGICLINKS
_LOOK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_REASONS = {
    errno.ENOENT: Reason.SOURCE_NOT_FOUND,
    errno.ENOTDIR: Reason.SOURCE_NOT_FOUND,
    errno.EACCES: Reason.SOURCE_ACCESS,
    errno.EPERM: Reason.SOURCE_ACCESS,
    errno.ELOOP: Reason.PATH_SYMLINK,
    errno.EXDEV: Reason.PATH_OUTSIDE,
    errno.ENAMETOOLONG: Reason.PATH_TOO_LONG,
}
_KINDS = {
    stat.S_IFLNK: (Reason.PATH_SYMLINK, "is a symbolic link"),
    stat.S_IFIFO: (Reason.PATH_FIFO, "is a FIFO"),
    stat.S_IFCHR: (Reason.PATH_DEVICE, "is a device"),
    stat.S_IFBLK: (Reason.PATH_DEVICE, "is a device"),
    stat.S_IFDIR: (Reason.PATH_DIRECTORY, "is a directory"),
    stat.S_IFSOCK: (Reason.PATH_SOCKET, "is a socket"),
}


class OpenedFile(Record):
    """An open regular file; a context manager that closes it.

    :ivar fd: open for reading, close-on-exec; its owner closes it.
    :ivar path: the canonical name: the directory's real path and the rest of the client's name.
    :ivar stat: what fstat(2) said after the open.
    """

    fd: int
    path: str
    stat: os.stat_result

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _Directory(NamedTuple):
    """An allowed directory: as the operator wrote it, and its real path at start."""

    spelling: str
    real: str


class Opener:
    """Opens dumps below the dump directories, and kernels below those and the kernel directories."""

    def __init__(self, dump_directories: Sequence[str], kernel_directories: Sequence[str] = ()) -> None:
        """Resolve the directories, which may be reached through symbolic links: that is the operator's choice.

        A directory needn't exist yet. Its real path is settled here; what stands there is looked up at every
        open, so that a file system mounted later is found.

        :param dump_directories: absolute paths, in the order in which bare names are looked up.
        :param kernel_directories: absolute paths of kernels with symbols; for :meth:`open_exec` they come first.
        :raises ValueError: a path is not absolute.
        """
        self._dumps = tuple(_settle(directory) for directory in dump_directories)
        self._kernels = tuple(_settle(directory) for directory in kernel_directories) + self._dumps

    def dump_candidates(self, name: str) -> tuple[str, ...]:
        """The canonical paths that a dump's name may mean, in order of preference, from the text alone.

        An absolute name has one, a relative name one a dump directory. Policy is decided on a candidate, and
        :meth:`open_dump` is then called with that candidate.

        :raises KvmError: BAD_ARGUMENT, PATH_TOO_LONG, PATH_DOTDOT, PATH_OUTSIDE;
            the same whether or not such a file exists.
        """
        return tuple(_join(directory, rest) for directory, rest in _places(name, self._dumps))

    def open_dump(self, name: str) -> OpenedFile:
        """Open a dump, or a swap area's image.

        :param name: an absolute path below a dump directory, in either spelling, or one relative to any of them.
        :raises KvmError: as :meth:`dump_candidates`; SOURCE_NOT_FOUND, SOURCE_ACCESS, SOURCE_IO with ``errno``;
            PATH_SYMLINK, PATH_FIFO, PATH_DEVICE, PATH_DIRECTORY, PATH_SOCKET, PATH_HARDLINK; EMPTY_FILE.
        """
        opened = _open_first(name, self._dumps)
        if not opened.stat.st_size:
            opened.close()
            raise error(Reason.EMPTY_FILE, f"{name}: empty file", path=name)
        return opened

    def open_exec(self, name: str) -> OpenedFile:
        """Open a kernel; as :meth:`open_dump`, but for the directories, and an empty file is left to the parser."""
        return _open_first(name, self._kernels)


def _settle(directory: str) -> _Directory:
    if not os.path.isabs(directory):
        raise ValueError(f"{directory!r} is not an absolute path")
    return _Directory(os.path.normpath(directory), os.path.realpath(directory))


def _join(directory: _Directory, rest: str) -> str:
    return os.path.join(directory.real, rest) if rest else directory.real


def _places(name: str, directories: Sequence[_Directory]) -> Iterator[tuple[_Directory, str]]:
    """Each directory that a name may lie in, with the rest of the name; judges the name as text."""
    parts = _components(name)
    if not name.startswith("/"):
        places = [(directory, "/".join(parts)) for directory in directories]
    else:
        path = "/" + "/".join(parts)
        places = [
            (directory, path[len(prefix) :].lstrip("/"))
            for directory in directories
            for prefix in dict.fromkeys((directory.spelling, directory.real))
            if path == prefix or path.startswith(prefix.rstrip("/") + "/")
        ][:1]
    if not places:
        raise error(Reason.PATH_OUTSIDE, f"{name}: not in a dump directory", path=name)
    return iter(places)


def _components(name: str) -> list[str]:
    """The parts of a name, without empty ones and ``.``; refuses what no name may hold."""
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise error(Reason.BAD_ARGUMENT, "the file's name can't be a name on this system") from None
    if length >= MAX_NAME:
        raise error(Reason.PATH_TOO_LONG, f"a file's name has {length} bytes, and {MAX_NAME - 1} is the most")
    if "\0" in name:
        raise error(Reason.BAD_ARGUMENT, "the file's name holds a NUL byte")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise error(Reason.PATH_DOTDOT, f"{name}: name contains ..", path=name)
    if not name:
        raise error(Reason.BAD_ARGUMENT, "the file's name is empty")
    return parts


def _open_first(name: str, directories: Sequence[_Directory]) -> OpenedFile:
    """Open the first that exists; a directory that has no such file hides no later one."""
    missing: KvmError | None = None
    for directory, rest in _places(name, directories):
        try:
            return _open(name, directory, rest)
        except KvmError as failure:
            if failure.reason is not Reason.SOURCE_NOT_FOUND:
                raise
            missing = missing or failure
    raise missing or error(Reason.SOURCE_NOT_FOUND, f"{name}: no such file", path=name, errno="ENOENT")


def _open(name: str, directory: _Directory, rest: str) -> OpenedFile:
    try:
        look = _look_up(directory, rest)
        try:
            before = os.fstat(look)
            _check_kind(name, before)
            if before.st_nlink > 1:
                _check_names(name, directory, rest, before)
            fd = os.open(f"/proc/self/fd/{look}", _READ)
        finally:
            os.close(look)
        try:
            after = os.fstat(fd)
            if (before.st_dev, before.st_ino, stat.S_IFMT(before.st_mode)) != (
                after.st_dev,
                after.st_ino,
                stat.S_IFMT(after.st_mode),
            ):  # /proc/self/fd is the very inode; unless /proc isn't the kernel's
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except BaseException:
            os.close(fd)
            raise
    except OSError as failure:
        raise _refusal(name, failure) from None
    return OpenedFile(fd, _join(directory, rest), after)


def _check_kind(name: str, status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        reason, text = _KINDS.get(kind, (Reason.PATH_DEVICE, "is not a regular file"))
        raise error(reason, f"{name}: {text}", path=name)


def _check_names(name: str, directory: _Directory, rest: str, status: os.stat_result) -> None:
    """Refuse a hard link that somebody may have made who can't read the file: where fs.protected_hardlinks is off.

    Its directory must be one in which only the file's owner, root and the daemon's own user can make names.
    """
    parent = _look_up(directory, os.path.dirname(rest))
    try:
        where, again = os.fstat(parent), os.stat(os.path.basename(rest), dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(parent)
    if (again.st_dev, again.st_ino) != (status.st_dev, status.st_ino):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    if where.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or where.st_uid not in (0, status.st_uid, os.geteuid()):
        message = f"{name}: has several names, and others can make names in its directory; open a copy"
        raise error(Reason.PATH_HARDLINK, message, path=name)


def _refusal(name: str, failure: OSError) -> KvmError:
    code = failure.errno or errno.EIO
    reason = _REASONS.get(code, Reason.SOURCE_IO)
    return error(reason, f"{name}: {os.strerror(code)}", path=name, errno=errno.errorcode.get(code, "EIO"))


def _look_up(directory: _Directory, rest: str) -> int:
    """An O_PATH descriptor of a name below a directory; of the symbolic link, if its last part is one."""
    # The directory's own path was made real at the start: a link in it now is one that somebody put there since.
    top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        base = _beneath(top, directory.real.lstrip("/") or ".")
    finally:
        os.close(top)
    try:
        return _beneath(base, rest or ".")
    finally:
        os.close(base)


def _beneath(directory: int, name: str) -> int:
    try:
        return _by_openat2(directory, os.fsencode(name))
    except OSError as failure:
        # Before Linux 5.6 there is no openat2; a container's seccomp filter of that age says EPERM.
        if failure.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return _by_parts(directory, os.fsencode(name))


def _by_openat2(directory: int, name: bytes) -> int:
    return syscalls.openat2(directory, name, _LOOK, _STRICT)


def _by_parts(directory: int, name: bytes) -> int:
    """The same without openat2: each part opened in its parent, and none of them followed."""
    fd = os.dup(directory)
    try:
        for part in name.split(b"/"):
            # An O_PATH descriptor of a link opens nothing below it, but says ENOTDIR where openat2 says ELOOP.
            if stat.S_ISLNK(os.fstat(fd).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            deeper = os.open(part, _LOOK, dir_fd=fd)
            os.close(fd)
            fd = deeper
    except BaseException:
        os.close(fd)
        raise
    return fd
