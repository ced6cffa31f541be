"""kvm_getprocs(3), kvm_getproc2(3), kvm_getlwps(3)."""

from __future__ import annotations

import os
from typing import cast

from libkvm.compat import constants as c
from libkvm.compat.kd import Kvm, open_handle
from libkvm.errors import KvmError, ProcessError
from libkvm.processes import Filter
from libkvm.records import Process

_KEYS = {
    c.KERN_PROC_PID: "pid",
    c.KERN_PROC_PGRP: "pgrp",
    c.KERN_PROC_SESSION: "session",
    c.KERN_PROC_TTY: "tty",
    c.KERN_PROC_UID: "uid",
    c.KERN_PROC_RUID: "ruid",
    c.KERN_PROC_GID: "gid",
    c.KERN_PROC_RGID: "rgid",
}
_PLAIN: dict[int, Filter] = {c.KERN_PROC_ALL: {}, c.KERN_PROC_KTHREAD: {"kernel_threads": True}}


def kvm_getprocs(kd: Kvm | None, op: int, arg: int = 0) -> list[Process] | None:
    """List processes: kvm_getprocs(3).

    :param op: KERN_PROC_ALL, or what is compared with ``arg``: KERN_PROC_PID, _PGRP, _SESSION, _TTY (a device
        number; KERN_PROC_TTY_NODEV: no terminal), _UID and _GID (effective), _RUID and _RGID (real); or
        KERN_PROC_KTHREAD, which ignores ``arg``.
    :return: the processes, in ascending order of pid; None on failure. An ``op`` that is none of these is
        EINVAL, on a dump too.
    """
    return _processes(kd, "kvm_getprocs", op, arg, 0)


def kvm_getproc2(kd: Kvm | None, op: int, arg: int = 0, esize: int = 0) -> list[Process] | None:
    """List processes: NetBSD's kvm_getproc2(3); otherwise as :func:`kvm_getprocs`.

    :param esize: the size of C's record, of which there is none here: records are whole, whatever it says.
        A negative one is EINVAL.
    """
    return _processes(kd, "kvm_getproc2", op, arg, esize)


def kvm_getlwps(kd: Kvm | None, pid: int, paddr: int = 0, esize: int = 0) -> list[Process] | None:
    """List the threads of a process: NetBSD's kvm_getlwps(3).

    :param paddr: where C finds struct proc in a dump; ignored: ``pid`` counts, on dumps too.
    :param esize: as of :func:`kvm_getproc2`.
    :return: the threads, the leader among them, in ascending order of thread id; None on failure, and if there is no
        such process (errno ESRCH, a soft error).
    """
    if (kd := open_handle(kd)) is None:
        return None
    if esize < 0:
        kd.invalid("kvm_getlwps")
        return None
    try:
        return kd.kernel.threads(pid)
    except ProcessError as failure:
        kd.soft(f"kvm_getlwps: {os.strerror(failure.errno)}", failure.errno)
    except KvmError as failure:
        kd.hard(failure.text, failure.errno)
    return None


def _processes(kd: Kvm | None, call: str, op: int, arg: int, esize: int) -> list[Process] | None:
    if (kd := open_handle(kd)) is None:
        return None
    if esize < 0 or (op not in _KEYS and op not in _PLAIN):
        kd.invalid(call)
        return None
    only = _PLAIN[op] if op in _PLAIN else cast("Filter", {_KEYS[op]: arg})
    return kd.asked(lambda kernel: kernel.processes(**only))
