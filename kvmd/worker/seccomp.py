"""The system calls that a worker may make once it is sandboxed; all others fail.

Found with strace(1) on CPython 3.11 with drgn 0.3 and libkdumpfile reading dumps and DWARF, and from the
manual pages for what other versions of libc use. Nothing here opens a file, makes a socket, starts a program,
or reaches another process; but for a worker that reads /proc, which may open files, to read them only. There is no
sendmsg(2): nobody is handed a descriptor.
"""

from __future__ import annotations

import errno
import os
from enum import Enum

from kvmd.worker import bpf

_CALLS: dict[str, tuple[int | None, int | None]] = {
    # name: x86-64 (asm/unistd_64.h), aarch64 (asm-generic/unistd.h); None where there is no such call
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "poll": (7, None),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "select": (23, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "dup": (32, 23),
    "dup2": (33, None),
    "nanosleep": (35, 101),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "shutdown": (48, 210),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "getsockopt": (55, 209),
    "exit": (60, 93),
    "uname": (63, 160),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),  # qsort(3) before glibc 2.37
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "getppid": (110, 173),
    "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "readahead": (187, 213),
    "time": (201, None),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "set_tid_address": (218, 96),
    "restart_syscall": (219, 128),
    "fadvise64": (221, 223),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "pselect6": (270, 72),
    "ppoll": (271, 73),
    "set_robust_list": (273, 99),
    "epoll_pwait": (281, 22),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "preadv": (295, 69),
    "getcpu": (309, 168),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "preadv2": (327, 286),
    "rseq": (334, 293),
    "close_range": (436, 436),
}

_WRITES: dict[str, tuple[int | None, int | None]] = {
    "pwrite64": (18, 68),
    "pwritev": (296, 70),
    "pwritev2": (328, 287),
}

# What reading /proc takes besides opening files.
_PROCFS: dict[str, tuple[int | None, int | None]] = {
    "getdents64": (217, 61),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "statx": (332, 291),
}

_CAPABILITIES: dict[str, tuple[int | None, int | None]] = {
    "capget": (125, 90),
    "capset": (126, 91),
}

_OPENAT = (257, 56)
_O_NOFOLLOW = (0o400000, 0o100000)
_O_WRITES = 0o1 | 0o2 | 0o100 | 0o1000 | 0o20000000  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, __O_TMPFILE
_PROT_EXEC = 4
_MAP_SHARED_ANONYMOUS = 0x21
_MAP_GROWSDOWN = 0x100
_AT_EMPTY_PATH = 0x1000
# pthread_create(3): glibc; musl adds CLONE_DETACHED. The flags are compared whole, so that no CLONE_NEW* can join them.
_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
_FCNTL = (0, 1, 2, 3, 4, 1030, 1034)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GET_SEALS
_IOCTL = (0x5421, 0x5450, 0x5451)  # FIONBIO, FIONCLEX, FIOCLEX
_PRCTL = (15, 16)  # PR_SET_NAME, PR_GET_NAME


class View(Enum):
    """Which files a worker may open itself, always for reading and never through a link as the last part."""

    NONE = "none"
    OWN = "own"
    """Those that its user may."""
    ANY = "any"
    """The same, and capabilities that it is permitted may be put into effect."""


Numbers = tuple[int | None, int | None]


def _conditional(pid: int, *, threads: bool) -> dict[Numbers, bpf.Rule]:
    """The calls that are judged by their arguments, or that fail with an errno of their own."""
    absent = bpf.fail(errno.ENOSYS)  # libc has an older way, whose arguments can be judged
    return {
        # No new code. Anonymous shared and growing mappings would escape RLIMIT_DATA (setrlimit(2)).
        (9, 222): bpf.both(
            bpf.without(2, _PROT_EXEC),
            bpf.both(bpf.without(3, _MAP_GROWSDOWN), bpf.not_both_set(3, _MAP_SHARED_ANONYMOUS)),
        ),
        (10, 226): bpf.without(2, _PROT_EXEC),  # mprotect
        (16, 29): bpf.one_of(1, _IOCTL, errno.ENOTTY),  # ioctl: what isatty(3) expects of a file
        (44, 206): bpf.null(4),  # sendto, to the peer only
        (56, 220): bpf.one_of(0, _THREAD_FLAGS) if threads else bpf.fail(),  # clone
        (72, 25): bpf.one_of(1, _FCNTL),
        (157, 167): bpf.one_of(0, _PRCTL),
        (234, 131): bpf.one_of(0, (pid,)),  # tgkill, for abort(3)
        (262, 79): bpf.having(3, _AT_EMPTY_PATH),  # newfstatat: fstat(3) of glibc 2.33 and later
        (302, 261): bpf.both(bpf.one_of(0, (0, pid)), bpf.null(2)),  # prlimit64, to ask only
        (332, 291): absent,  # statx
        (435, 435): absent,  # clone3, whose flags lie behind a pointer
        (439, 439): absent,  # faccessat2
        (441, 441): absent,  # epoll_pwait2
    }


def build(
    arch: bpf.Architecture,
    pid: int,
    *,
    threads: bool = True,
    writable: bool = False,
    view: View = View.NONE,
) -> bytes:
    """Build the worker's filter.

    :param arch: the processor's.
    :param pid: the worker's own process id, which alone it may signal.
    :param threads: whether it may start threads (drgn reads DWARF with OpenMP).
    :param writable: whether it may write to a file descriptor at an offset.
    :param view: what it may open.
    """
    plain = _CALLS | _WRITES if writable else _CALLS
    rules = {numbers[arch.column]: bpf.allow() for numbers in plain.values()}
    rules |= {numbers[arch.column]: rule for numbers, rule in _conditional(pid, threads=threads).items()}
    if view is not View.NONE:
        rules |= {numbers[arch.column]: bpf.allow() for numbers in _PROCFS.values()}
        reading = bpf.both(bpf.without(2, _O_WRITES), bpf.having(2, _O_NOFOLLOW[arch.column]))
        rules[_OPENAT[arch.column]] = reading
    if view is View.ANY:
        rules |= {numbers[arch.column]: bpf.allow() for numbers in _CAPABILITIES.values()}
    known = {number: rule for number, rule in rules.items() if number is not None}
    return bpf.assemble(arch, known, otherwise=bpf.fail())


def install(*, threads: bool, writable: bool, view: View = View.NONE) -> None:
    """Filter this process's system calls from now on.

    :raises OSError: ENOSYS on an unknown architecture; else as :func:`kvmd.worker.bpf.install`.
    """
    arch = bpf.architecture()
    bpf.install(arch, build(arch, os.getpid(), threads=threads, writable=writable, view=view))
