"""The constants of libkvm(3), with NetBSD's numbers where the systems differ."""

from __future__ import annotations

KVM_NO_FILES = 0x80000000
"""A flag of kvm_openfiles(3): open no file at all."""

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

KERN_PROC_TTY_NODEV = -1
"""The argument of KERN_PROC_TTY that lists processes without a terminal: (dev_t)-1."""

# Types of symbols: nlist.h.
N_UNDF = 0x00
N_EXT = 0x01
N_ABS = 0x02
N_TEXT = 0x04
N_DATA = 0x06
N_BSS = 0x08
