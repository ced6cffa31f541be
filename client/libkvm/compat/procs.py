"""kvm_getprocs(3)."""

from __future__ import annotations

import errno
import os
from typing import cast

from libkvm.compat import constants as c
from libkvm.compat.kd import Kvm, open_handle
from libkvm.errors import KvmError
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


def kvm_getprocs(kd: Kvm | None, op: int, arg: int) -> list[Process] | None:
    """List processes: kvm_getprocs(3).

    :param op: KERN_PROC_ALL, or what is compared with ``arg``: KERN_PROC_PID, _PGRP, _SESSION, _TTY (a device
        number; KERN_PROC_TTY_NODEV: no terminal), _UID and _GID (effective), _RUID and _RGID (real).
    :return: the processes, in ascending order of pid; None on failure. An ``op`` that is none of these is
        EINVAL, on a dump too.
    """
    if (kd := open_handle(kd)) is None:
        return None
    if op != c.KERN_PROC_ALL and op not in _KEYS:
        kd.hard(f"kvm_getprocs: {os.strerror(errno.EINVAL)}", errno.EINVAL)
        return None
    only = {} if op == c.KERN_PROC_ALL else {_KEYS[op]: arg}
    try:
        return kd.kernel.processes(**cast("Filter", only))
    except KvmError as failure:
        kd.hard(failure.text, failure.errno)
        return None
