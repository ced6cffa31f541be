"""Processes as /proc shows them, out of the kernel's structures.

Source: Linux fs/proc/array.c (do_task_stat, get_task_state), include/linux/sched.h (state bits since 4.14),
kernel/fork.c (counters in mm->rss_stat: percpu_counter since 6.2, atomics before).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.tasks import Tasks
from kvmd.v1 import process_pb2

Wanted = dict[str, tuple[str, ...]]

_PF_KTHREAD = 0x00200000
_NICE_0 = 120  # DEFAULT_PRIO
_REPORT = 0x7F
_STATES = "RSDTtXZP"  # task_state_array, by the highest bit set
_NOLOAD, _RTLOCK_WAIT, _FROZEN = 0x400, 0x1000, 0x8000
_IDLE = 0x2 | _NOLOAD

_TASK: Wanted = {
    "pid": ("pid",),
    "tgid": ("tgid",),
    "state": ("__state", "state"),
    "exit_state": ("exit_state",),
    "flags": ("flags",),
    "prio": ("static_prio",),
    "start": ("start_boottime", "real_start_time"),
    "comm": ("comm",),
    "mm": ("mm",),
    "parent": ("real_parent",),
    "signal": ("signal",),
    "sighand": ("sighand",),
    "cred": ("real_cred",),
    "thread_pid": ("thread_pid", "pids.0.pid"),
}
_SIGNAL: Wanted = {
    "threads": ("nr_threads",),
    "tty": ("tty",),
    "pgid": ("pids.2",),  # PIDTYPE_PGID; since Linux 4.19
    "sid": ("pids.3",),
}
_CRED: Wanted = {"uid": ("uid",), "gid": ("gid",), "euid": ("euid",), "egid": ("egid",)}
_TTY: Wanted = {"driver": ("driver",), "index": ("index",)}
_DRIVER: Wanted = {"major": ("major",), "first": ("minor_start",)}
_PID: Wanted = {"nr": ("numbers.0.nr",)}
# MM_FILEPAGES, MM_ANONPAGES and MM_SHMEMPAGES; the third of the four counts swap entries.
_MM: Wanted = {"vm": ("total_vm",), "pgd": ("pgd",)} | {
    f"rss{i}": (f"rss_stat.{i}.count", f"rss_stat.count.{i}.counter") for i in (0, 1, 3)
}

Filter = Callable[[process_pb2.Process, int], bool]
_F = process_pb2.ProcessFilter
FILTERS: dict[int, Filter] = {
    _F.PROCESS_FILTER_UNSPECIFIED: lambda p, wanted: True,
    _F.PROCESS_FILTER_ALL: lambda p, wanted: True,
    _F.PROCESS_FILTER_PID: lambda p, wanted: p.tgid == wanted,
    _F.PROCESS_FILTER_PGRP: lambda p, wanted: p.pgid == wanted,
    _F.PROCESS_FILTER_SESSION: lambda p, wanted: p.sid == wanted,
    _F.PROCESS_FILTER_TTY: lambda p, wanted: (p.tty if p.HasField("tty") else -1) == wanted,
    _F.PROCESS_FILTER_UID: lambda p, wanted: p.euid == wanted,
    _F.PROCESS_FILTER_RUID: lambda p, wanted: p.uid == wanted,
    _F.PROCESS_FILTER_GID: lambda p, wanted: p.egid == wanted,
    _F.PROCESS_FILTER_RGID: lambda p, wanted: p.gid == wanted,
    _F.PROCESS_FILTER_KTHREAD: lambda p, wanted: p.kernel_thread,
}


def state_letter(state: int, exit_state: int) -> str:
    """The letter of proc_pid_stat(5) for task_struct's two state words."""
    if state & _IDLE == _IDLE:
        return "I"
    if state & (_RTLOCK_WAIT | _FROZEN):
        return "D"
    return _STATES[((state | exit_state) & _REPORT).bit_length()]


class Processes:
    """The process list of one kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.tasks = Tasks(kernel)
        self._task = self._fields("struct task_struct", _TASK)
        self._signal = self._fields("struct signal_struct", _SIGNAL)
        self._cred = self._fields("struct cred", _CRED)
        self._pid = self._fields("struct pid", _PID)
        self._mm = self._fields("struct mm_struct", _MM)

    def _fields(self, tag: str, wanted: Wanted) -> Callable[[int], dict[str, Any]]:
        return Fields(self._kernel.prog, self._kernel.memory.kernel, tag, wanted)

    @cached_property
    def _terminals(self) -> tuple[Callable[[int], dict[str, Any]], Callable[[int], dict[str, Any]]]:
        return self._fields("struct tty_struct", _TTY), self._fields("struct tty_driver", _DRIVER)

    def select(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """List what the request asks for by ascending pid, without arguments.

        A task that can't be read is left out, and the first such fault is raised after all others are listed.

        :raises KvmError: BAD_ARGUMENT for an unknown filter; what :meth:`Tasks.walk` raises.
        """
        predicate = FILTERS.get(request.filter)
        if predicate is None:
            raise error(Reason.BAD_ARGUMENT, f"{request.filter} is no process filter")
        failure: KvmError | None = None
        for address in self.tasks.walk(request.threads):
            try:
                process = self.record(address)
            except KvmError as e:
                failure = failure or e
                continue
            if predicate(process, request.argument):
                yield process
        if failure is not None:
            raise failure

    def record(self, address: int) -> process_pb2.Process:
        """Describe the task at an address."""
        task = self._task(address)
        process = process_pb2.Process(
            pid=task["pid"],
            tgid=task["tgid"],
            ppid=self._task(task["parent"])["tgid"] if task["thread_pid"] and task["parent"] else 0,
            state=state_letter(task["state"], task["exit_state"]),
            nice=task["prio"] - _NICE_0,
            start_time_ns=task["start"],
            comm=task["comm"].split(b"\0")[0],
            kernel_thread=bool(task["flags"] & _PF_KTHREAD),
            task_address=address,
            **self._cred(task["cred"]),
        )
        if task["sighand"]:
            self._group(process, task["signal"])
        if task["mm"] and not process.kernel_thread:
            self._memory(process, task["mm"])
        return process

    def _group(self, process: process_pb2.Process, address: int) -> None:
        signal = self._signal(address)
        process.num_threads = max(signal["threads"], 0)
        process.pgid = self._pid(signal["pgid"])["nr"] if signal["pgid"] else 0
        process.sid = self._pid(signal["sid"])["nr"] if signal["sid"] else 0
        if signal["tty"]:
            tty, driver = self._terminals
            terminal = tty(signal["tty"])
            numbers = driver(terminal["driver"])
            process.tty = os.makedev(numbers["major"], numbers["first"] + terminal["index"])

    def _memory(self, process: process_pb2.Process, address: int) -> None:
        mm, size = self._mm(address), self._kernel.dump.layout.page_size
        process.vsz_bytes = mm["vm"] * size & (1 << 64) - 1
        # As in /proc, without what the tasks' own counters (up to 64 pages each, before 6.2) or CPUs still hold.
        process.rss_bytes = sum(max(mm[f"rss{i}"] or 0, 0) for i in (0, 1, 3)) * size

    def memory(self, pid: int, task_address: int | None = None) -> int:
        """The address of a process's mm_struct.

        :param task_address: its task's, if that is known: else all tasks are walked for it.
        :raises KvmError: NO_SUCH_PROCESS, NO_USER_MEMORY.
        """
        task = self._task(self.tasks.find(pid) if task_address is None else task_address)
        if not task["mm"] or task["flags"] & _PF_KTHREAD:
            raise no_user_memory(pid)
        found: int = task["mm"]
        return found


def no_user_memory(pid: int) -> KvmError:
    """The error for a process without memory of its own."""
    return error(Reason.NO_USER_MEMORY, f"process {pid} is a kernel thread or zombie and has no memory", pid=pid)
