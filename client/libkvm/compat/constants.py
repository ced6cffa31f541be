"""The constants of libkvm(3), with NetBSD's numbers where the systems differ."""

from __future__ import annotations

POSIX2_LINE_MAX = 2048
"""The size of an errbuf in bytes, its closing NUL included: _POSIX2_LINE_MAX of limits.h."""

# Operations of kvm_getprocs(3): sysctl(7), kern.proc. GID and RGID are 11 and 10 on FreeBSD.
KERN_PROC_ALL = 0
KERN_PROC_PID = 1
KERN_PROC_PGRP = 2
KERN_PROC_SESSION = 3
KERN_PROC_TTY = 4
KERN_PROC_UID = 5
KERN_PROC_RUID = 6
KERN_PROC_GID = 7
KERN_PROC_RGID = 8

KERN_PROC_KTHREAD = 0x100
"""Kernel threads; the argument is ignored. OpenBSD's idea, whose number (7) is NetBSD's KERN_PROC_GID; this one lies
outside the operations and modifiers of all BSDs."""

KERN_PROC_TTY_NODEV = -1
"""The argument of KERN_PROC_TTY that lists processes without a terminal: (dev_t)-1."""

KERN_PROC_TTY_REVOKE = -2
"""The argument that lists processes whose terminal was revoked: (dev_t)-2. Linux has none of these."""

# What kvm_getfiles(3) lists.
KERN_FILE_BYFILE = 1
KERN_FILE_BYPID = 2

# The states of kvm_getcptime(3): sys/resource.h of FreeBSD.
CP_USER = 0
CP_NICE = 1
CP_SYS = 2
CP_INTR = 3
CP_IDLE = 4
CPUSTATES = 5

# Protections of pages: vm_prot_t of FreeBSD.
VM_PROT_READ = 1
VM_PROT_WRITE = 2
VM_PROT_EXECUTE = 4

ARG_MAX = 2 << 20
"""The most bytes of arguments or environment that are read: what Linux lets a process have by default."""

# Types of symbols: nlist.h.
N_UNDF = 0x00
N_EXT = 0x01
N_ABS = 0x02
N_TEXT = 0x04
N_DATA = 0x06
N_BSS = 0x08
