"""Open files of processes, as /proc/PID/fd and /proc/PID/fdinfo show them.

Source: Linux include/linux/fdtable.h (files_struct, fdtable: an array of pointers and a bitmap of those in use, in
unsigned longs), fs/proc/fd.c (flags), include/linux/kdev_t.h (20 bits of minor number).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.paths import Paths, init_root
from kvmd.images.linux.tasks import Tasks
from kvmd.v1 import system_pb2

_PF_KTHREAD = 0x00200000
_CLOEXEC = 0o2000000
_ALL = (1 << 64) - 1
_MAX_FDS = 1 << 26  # of one process, far above what fs.nr_open is set to
_MAX_BROKEN = 1 << 8  # entries of one process that can't be read, before its table is given up
_TYPES = {
    stat.S_IFREG: "regular",
    stat.S_IFDIR: "directory",
    stat.S_IFCHR: "character",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFLNK: "link",
}


class OpenFiles:
    """The open files of one kernel's processes.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, tasks: Tasks) -> None:
        self._kernel = kernel
        self._tasks = tasks
        self._read = kernel.memory.kernel
        fields = {name: (name,) for name in ("pid", "tgid", "flags", "files")}
        self._task = self._fields("struct task_struct", fields)
        self._files = self._fields("struct files_struct", {"table": ("fdt",)})
        names = ("max_fds", "fd", "open_fds", "close_on_exec")
        self._table = self._fields("struct fdtable", {name: (name,) for name in names})
        file = {
            "mnt": ("f_path.mnt",),
            "dentry": ("f_path.dentry",),
            "inode": ("f_inode",),
            "flags": ("f_flags",),
            "position": ("f_pos",),
        }
        self._file = self._fields("struct file", file)
        inode = {"mode": ("i_mode",), "uid": ("i_uid",), "ino": ("i_ino",), "sb": ("i_sb",)}
        self._inode = self._fields("struct inode", inode)
        self._sb = self._fields("struct super_block", {"device": ("s_dev",)})

    def _fields(self, tag: str, wanted: Mapping[str, tuple[str, ...]]) -> Fields:
        return Fields(self._kernel.prog, self._kernel.memory.kernel, tag, wanted)

    def walk(self, pid: int) -> Iterator[system_pb2.OpenFile]:
        """List the open files of a process, or of all (``pid`` 0), by ascending pid and descriptor.

        Kernel threads and processes that have ended have none. A thread's pid lists its process. What can't be read is
        left out; the first such error is raised when everything else has been listed.

        :raises KvmError: NO_SUCH_PROCESS, CORRUPT_DATA, or the fault of a page that holds a file.
        """
        tasks = self._tasks.walk() if pid == 0 else iter([self._tasks.find(pid)])
        paths = Paths(self._kernel, init_root(self._kernel, self._tasks))
        failure: KvmError | None = None
        try:
            for address in tasks:
                try:
                    yield from self._of(address, paths)
                except KvmError as e:
                    failure = failure or e
        except KvmError as e:
            failure = failure or e
        if failure is not None:
            raise failure

    def _of(self, address: int, paths: Paths) -> Iterator[system_pb2.OpenFile]:
        task: dict[str, Any] = self._task(address)
        if not task["files"] or task["flags"] & _PF_KTHREAD:
            return
        broken, failure = 0, None
        for fd, file, flag in self._descriptors(task["files"]):
            try:
                record = self._record(file, paths)
            except KvmError as e:
                failure, broken = failure or e, broken + 1
                if broken >= _MAX_BROKEN:
                    break
                continue
            record.pid, record.fd = task["tgid"], fd
            record.flags = record.flags & ~_CLOEXEC | flag
            yield record
        if failure is not None:
            raise failure

    def _descriptors(self, files: int) -> Iterator[tuple[int, int, int]]:
        """Walk a table: (descriptor, address of its struct file, O_CLOEXEC or 0)."""
        at: Any = self._files(files)["table"]
        table: dict[str, Any] = self._table(at)
        count = table["max_fds"]
        if not 0 <= count <= _MAX_FDS or count % 64:
            raise error(Reason.CORRUPT_DATA, f"a process's table of {count} open files makes no sense", address=at)
        words = self._kernel.memory.words
        for start in range(0, count // 64, CHUNK // 8):
            length = min(CHUNK // 8, count // 64 - start)
            opened = words(table["open_fds"] + 8 * start & _ALL, length)
            closing = words(table["close_on_exec"] + 8 * start & _ALL, length)
            for index, (bits, closes) in enumerate(zip(opened, closing, strict=True), start):
                if not bits:
                    continue
                first = index * 64
                row = words(table["fd"] + first * 8 & _ALL, 64)
                for bit, file in enumerate(row):
                    if bits >> bit & 1 and file:  # a descriptor that is being opened has no file yet
                        yield first + bit, file, _CLOEXEC if closes >> bit & 1 else 0

    def _record(self, address: int, paths: Paths) -> system_pb2.OpenFile:
        file: dict[str, Any] = self._file(address)
        inode: dict[str, Any] = self._inode(file["inode"])
        device: Any = self._sb(inode["sb"])["device"]
        path = paths.path((file["mnt"], file["dentry"]))
        # Newer kernels' anonymous inodes and pidfds are regular files, which stat(2) hides.
        mode = 0 if path.startswith(b"anon_inode:") else stat.S_IFMT(inode["mode"])
        return system_pb2.OpenFile(
            path=path,
            type=_TYPES.get(mode, "unknown"),
            flags=file["flags"],
            position=file["position"] & _ALL,
            inode=inode["ino"],
            device=os.makedev(device >> 20, device & 0xFFFFF),
            uid=inode["uid"],
            file_address=address,
        )
