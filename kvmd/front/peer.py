"""Who is on the other end of a Unix socket: read once, at accept, from the kernel and nobody else.

Sources: unix(7), socket(7) (SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD), pidfd_open(2), proc_pid_stat(5).
SO_PEERCRED describes the process that called connect(2), at that moment; it does not follow the socket to
another process. The pidfd (Linux 6.5) pins that process, so that a reused pid can't be taken for it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import sys

from kvmd import syscalls
from kvmd.record import Record

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
_GROUPS_MAX = 65536  # NGROUPS_MAX of linux/limits.h
NOBODY = 65534
"""The user and group of a client that has none here."""
_HEAD = 4096  # a stat line is some 52 numbers and a name of 64 bytes at most; a cgroup's path is seldom long


class PeerGoneError(ConnectionError):
    """The process that connected is gone: nothing that /proc says of its pid can be trusted."""


class Certificate(Record):
    """The verified certificate of a client that came by TLS.

    :ivar name: whose it is.
    :ivar serial: its number, unique for its authority.
    :ivar expires: seconds since 1970.
    :ivar address: where the client is; for the record, not for decisions.
    """

    name: str
    serial: int
    expires: float
    address: str


class Peer(Record):
    """The identity of a client; of one from another host, ``certificate`` is all there is.

    :ivar uid: effective user id at connect(2).
    :ivar gid: effective group id at connect(2).
    :ivar pid: process id in the daemon's pid namespace; 0 if it isn't visible there.
    :ivar groups: supplementary groups at connect(2).
    :ivar start_time: clock ticks since boot at which the process started, or None; for the record, not for decisions.
    :ivar exe: what /proc/PID/exe said, or None; for the record, not for decisions: a client chooses what it executes.
    :ivar cgroup: its control group, which names the unit that it runs in, or None; for the record as well.
    :ivar certificate: of a client that came by TLS.
    """

    uid: int
    gid: int
    pid: int
    groups: tuple[int, ...] = ()
    start_time: int | None = None
    exe: str | None = None
    cgroup: str | None = None
    certificate: Certificate | None = None

    @property
    def cert(self) -> str | None:
        """The name in the certificate, for clients that came by TLS."""
        return None if self.certificate is None else self.certificate.name

    @property
    def identity(self) -> str:
        """What descriptors are bound to: ``uid:1000``, or ``cert:NAME``."""
        return f"uid:{self.uid}" if self.cert is None else f"cert:{self.cert}"


def credentials(sock: socket.socket) -> tuple[Peer, int | None]:
    """Read the identity of a connected Unix socket's peer.

    :return: the peer, and a pidfd of its process that the caller owns, or None on a kernel before 6.5.
    :raises PeerGoneError: the process has exited.
    :raises OSError: the kernel refused (EMFILE, for one); the connection must not be served.
    """
    pid, uid, gid = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups = _groups(sock)
    pidfd = _pidfd(sock)
    try:
        start_time, exe, cgroup = _process(pid) if pid > 0 else (None, None, None)
        # Only now is it known that what was just read was of the peer and not of a pid's next owner.
        if pidfd is not None and exited(pidfd):
            raise PeerGoneError(errno.ESRCH, f"process {pid} connected and exited")
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return Peer(uid, gid, pid, groups, start_time, exe, cgroup), pidfd


def exited(pidfd: int) -> bool:
    """Whether the process has exited: its pidfd has become readable (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _pidfd(sock: socket.socket) -> int | None:
    """The peer's pidfd, close-on-exec, or None where the kernel knows no such option."""
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as failure:
        if failure.errno == errno.ENOPROTOOPT:
            return None
        # A reaped peer: EINVAL in Linux 6.5 to 6.15, ESRCH in stable kernels; since 6.16 a pidfd that has
        # exited. To take it for an old kernel would lose the check in just the case it is there for.
        if failure.errno in (errno.EINVAL, errno.ESRCH):
            raise PeerGoneError(errno.ESRCH, "the process that connected has exited") from failure
        raise


def _groups(sock: socket.socket) -> tuple[int, ...]:
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError as failure:
        if failure.errno == errno.ENOPROTOOPT:  # before Linux 4.13
            return ()
        if failure.errno != errno.ERANGE:
            raise
        raw = syscalls.getsockopt(sock.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, 4 * _GROUPS_MAX)
    return struct.unpack(f"={len(raw) // 4}I", raw)


def _process(pid: int) -> tuple[int | None, str | None, str | None]:
    """Start time, executable and control group; None for what can't be read (another user's, hidepid, already gone)."""
    try:
        directory = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None, None, None
    try:
        return _start_time(directory), _exe(directory), _cgroup(directory)
    finally:
        os.close(directory)


def _head(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, _HEAD)
    finally:
        os.close(fd)


def own_start_time() -> int | None:
    """When this process started, as in :attr:`Peer.start_time`."""
    return _process(os.getpid())[0]


def _start_time(directory: int) -> int | None:
    try:
        line = _head(directory, "stat")
        # Field 2, the name, may hold spaces and parentheses; the last ")" ends it. Field 22 is the 20th after it.
        return int(line[line.rindex(b")") + 1 :].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _cgroup(directory: int) -> str | None:
    """The group of cgroups(7), version 2: the line of hierarchy 0."""
    try:
        lines = _head(directory, "cgroup").decode("utf-8", "backslashreplace").split("\n")
    except OSError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def _exe(directory: int) -> str | None:
    try:
        return os.readlink("exe", dir_fd=directory)
    except OSError:
        return None
