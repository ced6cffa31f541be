"""Listening sockets: bound by kvmd itself, or handed over by systemd.

Sources: unix(7), sd_listen_fds(3). Everything here runs once, at start, before any thread exists.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping
from typing import NamedTuple

from kvmd.fast import SUFFIX
from kvmd.front.lock import InstanceLock, ListenError, check_path, make_parent

_BACKLOG = 1024
_LISTEN_FDS_START = 3
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)


def bind_unix(
    path: str, mode: int, lock: InstanceLock, gid: int | None = None, kind: int = socket.SOCK_STREAM
) -> socket.socket:
    """Bind and listen at ``path``; the file has ``mode`` from its first moment.

    :param mode: permission bits of the socket; a client needs write permission.
    :param lock: the path's lock, without which a stale socket can't be told from a starting instance's.
    :param gid: the group to give the socket to; until it has it, the mode counts for the daemon's own group.
    :param kind: SOCK_STREAM or SOCK_SEQPACKET.
    :return: a non-blocking listening socket. Its file stays when it is closed: see :func:`unlink_socket`.
    :raises ListenError: the path is too long, taken, not a socket, or can't be made.
    """
    check_path(path.removesuffix(SUFFIX))  # which leaves room for it
    make_parent(path)
    if not lock.guards(path):
        raise ListenError(f"{path} can't be bound without its lock")
    _remove_stale(path, kind)
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        # chmod after bind would leave a moment with the wrong mode; the umask counts within bind itself.
        umask = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(umask)
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
        sock.listen(_BACKLOG)
    except OSError as failure:
        sock.close()
        raise ListenError(f"can't listen on {path}: {failure.strerror}") from failure
    return sock


def bind_tcp(host: str, port: int) -> socket.socket:
    """Bind and listen at an address of this host.

    :param host: a numeric address; ``::`` is every address, of IPv4 too.
    :return: a non-blocking listening socket.
    :raises ListenError: it is taken, or not this host's.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as failure:
        sock.close()
        raise ListenError(f"can't listen on {tcp_name((host, port))}: {failure.strerror}") from failure
    return sock


def tcp_name(address: tuple[str, int]) -> str:
    """Write an address as the configuration has it."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def unlink_socket(path: str, lock: InstanceLock) -> None:
    """Remove the file of a socket that :func:`bind_unix` made, on stop; only while the lock is still held."""
    with contextlib.suppress(OSError):
        if lock.guards(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)


class Inherited(NamedTuple):
    """A listening socket from systemd, and its FileDescriptorName= (``unknown`` if it has none)."""

    name: str
    socket: socket.socket

    @property
    def remote(self) -> bool:
        """Whether clients of other hosts come by it."""
        return self.socket.family != socket.AF_UNIX


def inherited_sockets(environ: MutableMapping[str, str] | None = None) -> list[Inherited]:
    """Take over the sockets of LISTEN_FDS and unset the variables, as sd_listen_fds(3) does.

    :return: nothing if the variables are absent or meant for another process.
    :raises ListenError: a descriptor is not a listening stream socket, of Unix or TCP.
    """
    environ = os.environ if environ is None else environ
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):
        return []
    if not count.isdecimal() or not count.isascii() or int(count) > 64:
        raise ListenError(f"LISTEN_FDS={count!r} is not a number of descriptors")
    labels = names.split(":") if names else []
    fds = range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count))
    taken: list[Inherited] = []
    try:
        for index, fd in enumerate(fds):
            taken.append(Inherited(labels[index] if index < len(labels) else "unknown", _adopt(fd)))
    except BaseException:
        for each in taken:
            each.socket.close()
        raise
    return taken


def _adopt(fd: int) -> socket.socket:
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise ListenError(f"inherited descriptor {fd} is not a socket")
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=fd)
    except OSError as failure:
        raise ListenError(f"inherited descriptor {fd} can't be used: {failure.strerror}") from failure
    listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.family not in _FAMILIES or sock.type != socket.SOCK_STREAM or not listening:
        sock.detach()
        raise ListenError(f"inherited descriptor {fd} is not a listening stream socket (ListenStream=)")
    sock.setblocking(False)
    return sock


def _remove_stale(path: str, kind: int) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ListenError(f"{path} exists and is not a socket: remove it, or choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(path)
    # The lock keeps other kvmds out; a socket of some other program may still be alive.
    if code != errno.ECONNREFUSED:
        raise ListenError(f"another program listens on {path}: stop it, or choose another path")
    os.unlink(path)
