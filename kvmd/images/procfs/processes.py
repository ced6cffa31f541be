"""Processes from /proc/PID and /proc/PID/task/TID; fields mean what they mean of a dump.

Sources: proc_pid_stat(5), proc_pid_status(5), proc_pid_comm(5), proc_pid_task(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.processes import FILTERS, no_user_memory
from kvmd.images.procfs import parse, strings, tree
from kvmd.v1 import error_pb2, process_pb2

MAX_PID = (1 << 31) - 1
_SMALL = 1 << 16
_STATUS = 1 << 20  # it lists up to 65536 groups


class Processes:
    """The processes that whoever runs this can see."""

    def __init__(self, proc: int) -> None:
        """:param proc: a directory descriptor of /proc."""
        self._proc = proc
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

    def select(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """List what the request asks for by ascending pid, with arguments if it says so.

        A process that ends meanwhile is left out as a whole, and so is one that /proc hides (hidepid).

        :raises KvmError: BAD_ARGUMENT for an unknown filter; CORRUPT_DATA, after all others are listed.
        """
        predicate = FILTERS.get(request.filter)
        if predicate is None:
            raise error(Reason.BAD_ARGUMENT, f"{request.filter} is no process filter")
        failure: KvmError | None = None
        for pid, tgid in self._candidates(request):
            try:
                with self.entered(pid, tgid) as directory:
                    process = self._record(directory, pid)
                    # A thread's own number names a directory, too, which isn't listed (proc_tid(5)).
                    if process.tgid != tgid or not predicate(process, request.argument):
                        continue
                    if request.arguments:
                        process.arguments.CopyFrom(_arguments(directory, process))
            except tree.UNSEEN:
                continue
            except KvmError as e:
                failure = failure or e
                continue
            yield process
        if failure is not None:
            raise failure

    def _candidates(self, request: process_pb2.GetProcsRequest) -> Iterator[tuple[int, int]]:
        """Numbers of tasks that may be meant, each with its group's."""
        if request.filter == process_pb2.PROCESS_FILTER_PID:
            groups = [request.argument] if 0 < request.argument <= MAX_PID else []
        else:
            groups = self.pids()
        if not request.threads:
            yield from ((pid, pid) for pid in groups)
            return
        tasks: list[tuple[int, int]] = []
        for tgid in groups:
            try:
                tasks.extend((tid, tgid) for tid in tree.numbers(self._proc, f"{tgid}/task"))
            except tree.UNSEEN:
                continue
        tasks.sort()
        yield from tasks

    def pids(self) -> list[int]:
        """The visible processes.

        :raises KvmError: SOURCE_ACCESS, SOURCE_IO.
        """
        try:
            return tree.numbers(self._proc)
        except OSError as failure:
            raise tree.unreadable("/proc", failure) from None

    def entered(self, pid: int, tgid: int | None = None) -> AbstractContextManager[int]:
        """A descriptor of a task's directory.

        :raises OSError: there is none, or it is hidden.
        """
        return tree.entered(self._proc, str(pid) if tgid in (None, pid) else f"{tgid}/task/{pid}")

    def _record(self, directory: int, pid: int) -> process_pb2.Process:
        stat, ids = status(directory), parse.ids(tree.read(directory, "status", _STATUS))
        comm = tree.read(directory, "comm", _SMALL)
        try:
            process = process_pb2.Process(
                pid=pid, tgid=ids.tgid, ppid=stat.ppid, pgid=stat.pgid, sid=stat.sid,
                uid=ids.uid, gid=ids.gid, euid=ids.euid, egid=ids.egid,
                state=stat.state, nice=stat.nice, num_threads=stat.threads, tty=stat.tty,
                start_time_ns=stat.start * self._tick,
                comm=parse.name(comm, kernel_thread=stat.kernel_thread), kernel_thread=stat.kernel_thread,
            )  # fmt: skip
            if stat.memory:
                process.vsz_bytes, process.rss_bytes = stat.vsize, stat.rss * self._page
        except ValueError:
            raise error(Reason.CORRUPT_DATA, f"/proc/{pid}: a number is out of bounds", path=f"/proc/{pid}") from None
        return process

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """Read a process's arguments or environment.

        :raises KvmError: NO_SUCH_PROCESS (also for one that /proc hides), NO_USER_MEMORY, POLICY_DENIED, BAD_ARGUMENT.
        """
        if 0 < pid <= MAX_PID:
            try:
                with self.entered(pid) as directory:
                    if not status(directory).memory:
                        raise no_user_memory(pid)
                    return strings.read(directory, pid, kind, limit)
            except tree.UNSEEN:
                pass
        raise no_such_process(pid)


def status(directory: int) -> parse.Stat:
    """What /proc/PID/stat says.

    :raises OSError: the process is gone or hidden.
    """
    line = tree.read(directory, "stat", _SMALL)
    if not line:
        raise ProcessLookupError
    return parse.stat(line)


def no_such_process(pid: int) -> KvmError:
    """The error for a number that is no process's, or a hidden one's."""
    return error(Reason.NO_SUCH_PROCESS, f"no process has the id {pid}", pid=pid)


def _arguments(directory: int, process: process_pb2.Process) -> process_pb2.Strings:
    if process.HasField("vsz_bytes"):
        return strings.read(directory, process.pid, process_pb2.STRINGS_KIND_ARGUMENTS, 0)
    none = no_user_memory(process.pid)
    failure = error_pb2.Error(reason=none.reason.value, message=none.message, metadata=none.metadata)
    return process_pb2.Strings(error=failure)
