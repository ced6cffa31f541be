"""Processes of an image, their arguments and environments."""

from __future__ import annotations

from typing import TypedDict, Unpack

from kvmd.v1 import process_pb2
from libkvm.bounds import id_number
from libkvm.calls import GET_PROCS, GET_STRINGS
from libkvm.convert import failure, record, text
from libkvm.errors import Reason, error
from libkvm.handle import Handle
from libkvm.records import Process


class Filter(TypedDict, total=False):
    """Which processes are listed; at most one key."""

    pid: int
    pgrp: int
    session: int
    tty: int
    uid: int
    ruid: int
    gid: int
    rgid: int
    kernel_threads: bool


_WIRE = {
    "pid": process_pb2.PROCESS_FILTER_PID,
    "pgrp": process_pb2.PROCESS_FILTER_PGRP,
    "session": process_pb2.PROCESS_FILTER_SESSION,
    "tty": process_pb2.PROCESS_FILTER_TTY,
    "uid": process_pb2.PROCESS_FILTER_UID,
    "ruid": process_pb2.PROCESS_FILTER_RUID,
    "gid": process_pb2.PROCESS_FILTER_GID,
    "rgid": process_pb2.PROCESS_FILTER_RGID,
    "kernel_threads": process_pb2.PROCESS_FILTER_KTHREAD,
}


class Processes(Handle):
    """What can be read of an image's processes."""

    def processes(
        self, *, threads: bool = False, arguments: bool = False, timeout: float | None = None, **only: Unpack[Filter]
    ) -> list[Process]:
        """List processes in ascending order of pid; see kvm_getprocs(3).

        :param threads: list every thread, not just the thread group leaders.
        :param arguments: read each process's arguments too, into ``args`` and ``args_error``.
        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :param only: at most one of ``pid``, ``pgrp``, ``session``, ``tty`` (a device number; -1: no terminal),
            ``uid`` and ``gid`` (effective), ``ruid`` and ``rgid`` (real), ``kernel_threads``.
        :raises AccessError: the policy forbids it.
        :raises FormatError: the image's lists are damaged.
        """
        kind, argument = _filter(only)
        request = GET_PROCS.request(
            descriptor=self._id, filter=kind, argument=argument, threads=threads, arguments=arguments
        )
        session = self._session
        answers = session.stream(GET_PROCS, request, session.long_timeout if timeout is None else timeout)
        return [record(Process, process) for answer in answers for process in answer.processes]

    def threads(self, process: Process | int, *, timeout: float | None = None) -> list[Process]:
        """List a process's threads, its leader among them, in ascending order of thread id; see kvm_getlwps(3).

        :param process: a process, or its id.
        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :raises ProcessError: there is no such process.
        """
        pid = id_number(_pid(process))
        found = self.processes(threads=True, pid=pid, timeout=timeout)
        if not found:
            raise error(Reason.NO_SUCH_PROCESS, f"there is no process {pid}", pid=pid)
        return found

    def argv(self, process: Process | int, *, max_bytes: int = 0, timeout: float | None = None) -> list[str]:
        """Read a process's arguments; see kvm_getargv(3).

        :param process: a process, or its id.
        :param max_bytes: the most bytes to read, closing NULs included; 0: up to 2 MiB.
        :return: the arguments, bytes that are not UTF-8 as surrogate escapes.
        :raises ProcessError: there is no such process, or it has no memory of its own.
        :raises FaultError: they can't be read to the end; the attribute ``partial`` lists those that can.
        """
        return self._strings(process_pb2.STRINGS_KIND_ARGUMENTS, process, max_bytes, timeout)

    def environ(self, process: Process | int, *, max_bytes: int = 0, timeout: float | None = None) -> list[str]:
        """Read a process's environment, as ``NAME=value`` strings; otherwise as :meth:`argv`. See kvm_getenvv(3)."""
        return self._strings(process_pb2.STRINGS_KIND_ENVIRONMENT, process, max_bytes, timeout)

    def _strings(
        self, kind: process_pb2.StringsKind, process: Process | int, max_bytes: int, timeout: float | None
    ) -> list[str]:
        request = GET_STRINGS.request(
            descriptor=self._id, kind=kind, pid=id_number(_pid(process)), max_bytes_read=max_bytes
        )
        strings = self._session.unary(GET_STRINGS, request, timeout).strings
        values = [text(value) for value in strings.values]
        if strings.HasField("error"):
            unread = failure(strings.error)
            unread.partial = values
            raise unread
        return values


def _pid(process: Process | int) -> int:
    return process.pid if isinstance(process, Process) else process


def _filter(only: Filter) -> tuple[process_pb2.ProcessFilter, int]:
    if not only:
        return process_pb2.PROCESS_FILTER_ALL, 0
    [(name, value), *more] = only.items()
    if more:
        raise TypeError(f"processes() takes one filter, not {', '.join(only)}")
    if name not in _WIRE:
        raise TypeError(f"processes() has no filter {name!r}; there are {', '.join(_WIRE)}")
    if name == "kernel_threads":
        return (_WIRE[name] if value else process_pb2.PROCESS_FILTER_ALL), 0
    if not isinstance(value, int):
        raise TypeError(f"the filter {name} is an int, not {value!r}")
    return _WIRE[name], id_number(value, 64)
