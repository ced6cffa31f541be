"""kvm_getargv(3), kvm_getenvv(3) and their NetBSD twins for kvm_getproc2(3)."""

from __future__ import annotations

import os
from typing import Literal

from libkvm.compat.constants import ARG_MAX
from libkvm.compat.kd import Kvm, open_handle, usable
from libkvm.convert import text
from libkvm.errors import FaultError, KvmError
from libkvm.records import Process

_Kind = Literal["argv", "environ"]


def kvm_getargv(kd: Kvm | None, proc: Process | int, nchr: int = 0) -> list[str] | None:
    """Read a process's arguments from its own memory, of a dump too: kvm_getargv(3).

    :param proc: a process of kvm_getprocs(3), or its id.
    :param nchr: the most bytes, closing NULs included: the string that would exceed them is cut and is the last;
        0, or more than ARG_MAX: ARG_MAX.
    :return: the arguments; None on failure, of which :func:`libkvm.kvm_geterr` tells: a kernel thread, a zombie,
        a page that is not there (``invalid address``, or why it is not, always a soft error).
    """
    return _strings(usable(kd, "kvm_getargv"), "kvm_getargv", "argv", proc, min(nchr, ARG_MAX))


def kvm_getenvv(kd: Kvm | None, proc: Process | int, nchr: int = 0) -> list[str] | None:
    """Read a process's environment from its own memory: kvm_getenvv(3); otherwise as :func:`kvm_getargv`."""
    return _strings(usable(kd, "kvm_getenvv"), "kvm_getenvv", "environ", proc, min(nchr, ARG_MAX))


def kvm_getargv2(kd: Kvm | None, proc: Process | int, nchr: int = 0) -> list[str] | None:
    """Read a process's arguments: NetBSD's kvm_getargv2(3), which also works with KVM_NO_FILES.

    On a dump these are the dump's, never those of the running system. Otherwise as :func:`kvm_getargv`, but

    :param nchr: more than ARG_MAX is EINVAL.
    """
    return _strings(open_handle(kd), "kvm_getargv2", "argv", proc, nchr)


def kvm_getenvv2(kd: Kvm | None, proc: Process | int, nchr: int = 0) -> list[str] | None:
    """Read a process's environment: NetBSD's kvm_getenvv2(3); otherwise as :func:`kvm_getargv2`."""
    return _strings(open_handle(kd), "kvm_getenvv2", "environ", proc, nchr)


def _strings(kd: Kvm | None, call: str, kind: _Kind, proc: Process | int, nchr: int) -> list[str] | None:
    if kd is None:
        return None
    if not 0 <= nchr <= ARG_MAX:
        kd.invalid(call)
        return None
    read = kd.kernel.argv if kind == "argv" else kd.kernel.environ
    try:
        values = read(proc, max_bytes=nchr)
    except FaultError as fault:
        kd.fault(fault)
        return None
    except KvmError as failure:
        kd.soft(failure.text, failure.errno)
        return None
    return _cut(values, nchr) if nchr else values


def _cut(values: list[str], nchr: int) -> list[str]:
    """Keep so many bytes, a NUL after each string among them."""
    kept: list[str] = []
    for value in values:
        raw = os.fsencode(value)
        if len(raw) < nchr:
            kept.append(value)
            nchr -= len(raw) + 1
            continue
        if nchr:
            kept.append(text(raw[: nchr - 1]))
        break
    return kept
