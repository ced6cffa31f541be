"""Open files from /proc/PID/fd and fdinfo: of processes that whoever runs this may look into, none of others.

Sources: proc_pid_fd(5), proc_pid_fdinfo(5), statx(2). A link of fd leads to the file itself, which may lie on a file
system of some user's own making (FUSE): statx is told not to ask it (AT_STATX_DONT_SYNC), as stat(2) would.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator

from kvmd import syscalls
from kvmd.errors import KvmError
from kvmd.images.procfs import parse, tree
from kvmd.images.procfs.processes import MAX_PID, Processes, no_such_process, status
from kvmd.v1 import system_pb2

_STATX = {"x86_64": 332, "aarch64": 291}
_DONT_SYNC, _BASIC = 0x4000, 0x7FF
_STATX_SIZE = 256
_FDINFO = 1 << 16
_TYPES = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "link",
}


def select(processes: Processes, pid: int) -> Iterator[system_pb2.OpenFile]:
    """List the open files of a process or of all (0); what the client may not see is absent.

    :raises KvmError: NO_SUCH_PROCESS for a number that is no process's, or a hidden one's.
    """
    for number in [pid] if pid else processes.pids():
        try:
            if not 0 < number <= MAX_PID:
                raise ProcessLookupError
            with processes.entered(number) as directory:
                if pid:
                    status(directory)
                yield from _of(directory, number)
        except tree.GONE:
            if pid:
                raise no_such_process(pid) from None
        except PermissionError:
            continue


def _of(directory: int, pid: int) -> Iterator[system_pb2.OpenFile]:
    try:
        found = tree.numbers(directory, "fd")
        with tree.entered(directory, "fd") as links, tree.entered(directory, "fdinfo") as facts:
            for fd in found:
                try:
                    yield _record(links, facts, pid, fd)
                except (OSError, KvmError, ValueError):  # closed meanwhile
                    continue
    except tree.UNSEEN:
        return


def _record(links: int, facts: int, pid: int, fd: int) -> system_pb2.OpenFile:
    path = os.readlink(os.fsencode(str(fd)), dir_fd=links)
    position, flags = parse.fdinfo(tree.read(facts, str(fd), _FDINFO))
    record = system_pb2.OpenFile(pid=pid, fd=fd, path=path, flags=flags, position=position & (1 << 64) - 1)
    record.uid, mode, record.inode, record.device = _statx(links, str(fd))
    record.type = _TYPES.get(stat.S_IFMT(mode), "unknown")
    return record


def _statx(directory: int, name: str) -> tuple[int, int, int, int]:
    """Owner, mode, inode and device of what a link leads to, as far as they are known without asking its server."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    number = _STATX[os.uname().machine]
    syscalls.syscall(number, directory, os.fsencode(name), _DONT_SYNC, _BASIC, buffer, name="statx")
    uid, _gid, mode, inode = struct.unpack_from("=IIHxxQ", buffer, 20)
    major, minor = struct.unpack_from("=II", buffer, 136)
    return uid, mode, inode, os.makedev(major, minor)
