"""The C-style face: the calls of libkvm(3), which answer as NetBSD's do and never raise for a failed operation.

An error is where libkvm puts it: in ``errbuf``, on the handle (:func:`kvm_geterr`), or, for a handle opened by
:func:`kvm_open` with an ``errstr``, on stderr as ``errstr: text``. ``ctypes.get_errno()`` answers its errno.
"""

from __future__ import annotations

from libkvm.compat.constants import (
    ARG_MAX,
    CP_IDLE,
    CP_INTR,
    CP_NICE,
    CP_SYS,
    CP_USER,
    CPUSTATES,
    KERN_FILE_BYFILE,
    KERN_FILE_BYPID,
    KERN_PROC_ALL,
    KERN_PROC_GID,
    KERN_PROC_KTHREAD,
    KERN_PROC_PGRP,
    KERN_PROC_PID,
    KERN_PROC_RGID,
    KERN_PROC_RUID,
    KERN_PROC_SESSION,
    KERN_PROC_TTY,
    KERN_PROC_TTY_NODEV,
    KERN_PROC_TTY_REVOKE,
    KERN_PROC_UID,
    N_ABS,
    N_BSS,
    N_DATA,
    N_EXT,
    N_TEXT,
    N_UNDF,
    POSIX2_LINE_MAX,
    VM_PROT_EXECUTE,
    VM_PROT_READ,
    VM_PROT_WRITE,
)
from libkvm.compat.counts import kvm_getcptime, kvm_getloadavg
from libkvm.compat.dumping import kvm_dump_inval, kvm_dump_mkheader, kvm_dump_wrtheader
from libkvm.compat.errbuf import ErrBuf
from libkvm.compat.files import kvm_getfiles
from libkvm.compat.image import kvm_kerndisp, kvm_native
from libkvm.compat.kd import kvm_close, kvm_geterr, kvm_getkernelname
from libkvm.compat.namelist import Nlist, kvm_nlist, kvm_nlist2
from libkvm.compat.opening import kvm_open, kvm_open2, kvm_openfiles
from libkvm.compat.pages import kvm_walk_pages
from libkvm.compat.percpu import (
    kvm_counter_u64_fetch,
    kvm_dpcpu_setcpu,
    kvm_getmaxcpu,
    kvm_getncpus,
    kvm_getpcpu,
    kvm_read_zpcpu,
)
from libkvm.compat.procs import kvm_getlwps, kvm_getproc2, kvm_getprocs
from libkvm.compat.reading import kvm_read, kvm_read2
from libkvm.compat.strings import kvm_getargv, kvm_getargv2, kvm_getenvv, kvm_getenvv2
from libkvm.compat.swap import SwapInfo, kvm_getswapinfo
from libkvm.compat.user import kvm_uread
from libkvm.compat.writing import kvm_write
from libkvm.names import KVM_ANY_SWAP, KVM_NO_FILES

__all__ = [
    "ARG_MAX",
    "CPUSTATES",
    "CP_IDLE",
    "CP_INTR",
    "CP_NICE",
    "CP_SYS",
    "CP_USER",
    "KERN_FILE_BYFILE",
    "KERN_FILE_BYPID",
    "KERN_PROC_ALL",
    "KERN_PROC_GID",
    "KERN_PROC_KTHREAD",
    "KERN_PROC_PGRP",
    "KERN_PROC_PID",
    "KERN_PROC_RGID",
    "KERN_PROC_RUID",
    "KERN_PROC_SESSION",
    "KERN_PROC_TTY",
    "KERN_PROC_TTY_NODEV",
    "KERN_PROC_TTY_REVOKE",
    "KERN_PROC_UID",
    "KVM_ANY_SWAP",
    "KVM_NO_FILES",
    "N_ABS",
    "N_BSS",
    "N_DATA",
    "N_EXT",
    "N_TEXT",
    "N_UNDF",
    "POSIX2_LINE_MAX",
    "VM_PROT_EXECUTE",
    "VM_PROT_READ",
    "VM_PROT_WRITE",
    "ErrBuf",
    "Nlist",
    "SwapInfo",
    "kvm_close",
    "kvm_counter_u64_fetch",
    "kvm_dpcpu_setcpu",
    "kvm_dump_inval",
    "kvm_dump_mkheader",
    "kvm_dump_wrtheader",
    "kvm_getargv",
    "kvm_getargv2",
    "kvm_getcptime",
    "kvm_getenvv",
    "kvm_getenvv2",
    "kvm_geterr",
    "kvm_getfiles",
    "kvm_getkernelname",
    "kvm_getloadavg",
    "kvm_getlwps",
    "kvm_getmaxcpu",
    "kvm_getncpus",
    "kvm_getpcpu",
    "kvm_getproc2",
    "kvm_getprocs",
    "kvm_getswapinfo",
    "kvm_kerndisp",
    "kvm_native",
    "kvm_nlist",
    "kvm_nlist2",
    "kvm_open",
    "kvm_open2",
    "kvm_openfiles",
    "kvm_read",
    "kvm_read2",
    "kvm_read_zpcpu",
    "kvm_uread",
    "kvm_walk_pages",
    "kvm_write",
]
