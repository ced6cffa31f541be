"""The C-style face: the calls of libkvm(3), which answer as NetBSD's do and never raise for a failed operation.

An error is where libkvm puts it: in ``errbuf``, on the handle (:func:`kvm_geterr`), or, for a handle opened by
:func:`kvm_open` with an ``errstr``, on stderr as ``errstr: text``. ``ctypes.get_errno()`` answers its errno.
"""

from __future__ import annotations

from libkvm.compat.constants import (
    KERN_PROC_ALL,
    KERN_PROC_GID,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_TTY_NODEV,
    KERN_PROC_UID,
    KVM_NO_FILES,
    N_ABS,
    N_BSS,
    N_DATA,
    N_EXT,
    N_TEXT,
    N_UNDF,
    POSIX2_LINE_MAX,
)
from libkvm.compat.errbuf import ErrBuf
from libkvm.compat.kd import kvm_close, kvm_geterr, kvm_getkernelname
from libkvm.compat.namelist import Nlist, kvm_nlist
from libkvm.compat.opening import kvm_open, kvm_open2, kvm_openfiles
from libkvm.compat.procs import kvm_getprocs
from libkvm.compat.reading import kvm_read

__all__ = [
    "KERN_PROC_ALL",
    "KERN_PROC_GID",
    "KERN_PROC_PGRP",
    "KERN_PROC_PID",
    "KERN_PROC_RGID",
    "KERN_PROC_RUID",
    "KERN_PROC_SESSION",
    "KERN_PROC_TTY",
    "KERN_PROC_TTY_NODEV",
    "KERN_PROC_UID",
    "KVM_NO_FILES",
    "N_ABS",
    "N_BSS",
    "N_DATA",
    "N_EXT",
    "N_TEXT",
    "N_UNDF",
    "POSIX2_LINE_MAX",
    "ErrBuf",
    "Nlist",
    "kvm_close",
    "kvm_geterr",
    "kvm_getkernelname",
    "kvm_getprocs",
    "kvm_nlist",
    "kvm_open",
    "kvm_open2",
    "kvm_openfiles",
    "kvm_read",
]
