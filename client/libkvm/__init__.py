"""libkvm: kvm_open(3) for clients that own nothing.

Two faces over one connection to kvmd(8). The Python one raises; the C one answers as libkvm(3) does::

    import libkvm

    with libkvm.connect() as client, client.open(corefile="vmcore") as kernel:
        print(kernel.info.release, kernel.symbol("jiffies"))
        for process in kernel.processes():
            print(process.pid, process.comm)
"""

from __future__ import annotations

from libkvm.client import Client, connect
from libkvm.compat import (
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
    ErrBuf,
    Nlist,
    kvm_close,
    kvm_geterr,
    kvm_getkernelname,
    kvm_getprocs,
    kvm_nlist,
    kvm_open,
    kvm_open2,
    kvm_openfiles,
    kvm_read,
)
from libkvm.errors import (
    AccessError,
    CancelledError,
    DeadlineError,
    DescriptorError,
    FaultError,
    FormatError,
    InternalError,
    KvmError,
    LimitError,
    ProcessError,
    Reason,
    RequestError,
    SourceError,
    SourceNotFoundError,
    SymbolNotFoundError,
    UnavailableError,
    UnsupportedError,
)
from libkvm.kernel import Kernel
from libkvm.records import Info, LogRecord, Process, RangeResult, Symbol

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
    "AccessError",
    "CancelledError",
    "Client",
    "DeadlineError",
    "DescriptorError",
    "ErrBuf",
    "FaultError",
    "FormatError",
    "Info",
    "InternalError",
    "Kernel",
    "KvmError",
    "LimitError",
    "LogRecord",
    "Nlist",
    "Process",
    "ProcessError",
    "RangeResult",
    "Reason",
    "RequestError",
    "SourceError",
    "SourceNotFoundError",
    "Symbol",
    "SymbolNotFoundError",
    "UnavailableError",
    "UnsupportedError",
    "connect",
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
