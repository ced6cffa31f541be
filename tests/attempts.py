"""What code that has taken a worker over may try: one row an attempt, with the answer that refuses it.

The rows are Python expressions, run one after the other by :data:`PROGRAM` in whichever process executes it: a real
worker that parses a hostile dump, a sandboxed process of a plain user's, or a free one, where those marked as
``passes`` must succeed, or their refusal elsewhere would say nothing. Numbers are x86-64's (asm/unistd_64.h).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Attempt:
    """An attempt.

    :ivar call: an expression; ``raw`` is syscall(2), and :class:`Targets` has the other names.
    :ivar answer: what refuses it.
    :ivar passes: whether it succeeds where there is no sandbox.
    :ivar user: the answer where the daemon is not root, if that is another: its workers have no empty root.
    """

    call: str
    answer: str = "EPERM"
    passes: bool = False
    user: str = ""


def _a(call: str, answer: str = "EPERM", *, user: str = "") -> Attempt:
    return Attempt(call, answer, user=user)


def _p(call: str, answer: str = "EPERM") -> Attempt:
    return Attempt(call, answer, passes=True)


ATTEMPTS: dict[str, Attempt] = {
    # files
    "open": _p("raw(257, -100, secret, 0)"),
    "open of old": _p("raw(2, secret, 0)"),
    "openat2": _a("raw(437, -100, secret, bytes(24), 24)"),
    "open_by_handle_at": _a("raw(304, -100, bytes(16), 0)"),
    "name_to_handle_at": _a("raw(303, -100, secret, room, room, 0)"),
    "open the daemon's memory": _a("raw(2, b'/proc/%d/mem' % os.getppid(), 0)"),
    "open the daemon's environment": _a("raw(2, b'/proc/%d/environ' % os.getppid(), 0)"),
    "open its own memory": _a("raw(2, b'/proc/self/mem', 2)"),
    "create": _p("raw(85, folder + b'/x', 0o600)"),
    "mkdir": _p("raw(83, folder + b'/y', 0o700)"),
    "unlink": _a("raw(87, secret)"),
    "rename": _a("raw(82, secret, folder + b'/z')"),
    "link": _a("raw(86, secret, folder + b'/z')"),
    "symlink": _p("raw(88, secret, folder + b'/s')"),
    "mknod": _p("raw(133, folder + b'/f', 0o10600, 0)"),
    "chmod": _a("raw(90, secret, 0o777)"),
    "stat": _p("raw(4, secret, room)"),
    "lstat": _p("raw(6, secret, room)"),
    "stat by way of fstat": Attempt("raw(262, -100, secret, room, 0x1000)", "EACCES", passes=True, user="passed"),
    "statx": _a("raw(332, -100, secret, 0, 0xFFF, room)", "ENOSYS"),
    "access": _p("raw(21, secret, 4)"),
    "readlink": _p("raw(89, b'/proc/self/exe', room, 99)"),
    "getdents64": _a("raw(217, 0, room, 200)"),
    "statfs": _p("raw(137, secret, room)"),
    "chdir": _p("raw(80, b'/')"),
    "fchdir": _a("raw(81, 0)"),
    "inotify_init1": _p("raw(294, 0)"),
    "fanotify_init": _a("raw(300, 0, 0)"),
    "memfd_create": _p("raw(319, b'x', 0)"),
    "memfd_secret": _a("raw(447, 0)"),
    "write to the dump": _a("raw(1, core, b'x', 1)", "EBADF"),
    "pwrite64": _a("raw(18, core, b'x', 1, 0)"),
    "map the dump to write": _a("raw(9, 0, 4096, 3, 1, core, 0)", "EACCES"),
    "ftruncate": _a("raw(77, core, 0)"),
    "fchmod": _a("raw(91, core, 0o777)"),
    "fallocate": _a("raw(285, core, 0, 0, 1)"),
    "flock": _p("raw(73, core, 2)"),
    "lock a range": _a("raw(72, core, 6, room)"),
    "F_SETOWN": _a("raw(72, 0, 8, 1)"),
    "F_SETLEASE": _a("raw(72, core, 1024, 1)"),
    "splice": _a("raw(275, core, 0, 1, 0, 1, 0)"),
    "sendfile": _a("raw(40, 1, core, 0, 1)"),
    "copy_file_range": _a("raw(326, core, 0, 1, 0, 1, 0)"),
    # sockets
    "socket of TCP": _p("raw(41, 2, 1, 0)"),
    "socket of Unix": _p("raw(41, 1, 1, 0)"),
    "socket of netlink": _p("raw(41, 16, 3, 0)"),
    "socket of packets": _a("raw(41, 17, 3, 0)"),
    "socket of virtual machines": _a("raw(41, 40, 1, 0)"),
    "socketpair": _p("raw(53, 1, 1, 0, room)"),
    "connect to the daemon": _a("raw(42, free, b'\\1\\0' + public, 2 + len(public))"),
    "connect to an abstract name": _a("raw(42, free, b'\\1\\0\\0' + abstract, 3 + len(abstract))"),
    "bind": _a("raw(49, free, b'\\1\\0\\0name', 7)"),
    "listen": _a("raw(50, free, 1)"),
    "accept": _a("raw(43, free, 0, 0)"),
    "sendto an address": _a("raw(44, free, b'x', 1, 0, b'\\1\\0\\0' + abstract, 3 + len(abstract))"),
    "sendmmsg": _a("raw(307, free, room, 1, 0)"),
    "setsockopt": _a("raw(54, free, 1, 8, bytes(4), 4)"),
    "pipe2": _p("raw(293, room, 0)"),
    "io_uring_setup": _a("raw(425, 1, bytes(120))"),
    "io_setup": _a("raw(206, 1, room)"),
    # other processes
    "kill a process of its user": _p("raw(62, victim, 0)"),
    "kill the daemon": _a("raw(62, os.getppid(), 0)"),
    "kill itself": _p("raw(62, os.getpid(), 0)"),
    "kill everybody": _a("raw(62, -1, 0)"),
    "tkill": _p("raw(200, victim, 0)"),
    "tgkill of another": _p("raw(234, victim, victim, 0)"),
    "rt_sigqueueinfo": _a("raw(129, victim, 0, bytes(128))"),
    "pidfd_open": _p("raw(434, victim, 0)"),
    "pidfd_getfd": _a("raw(438, core, 0, 0)"),
    "pidfd_send_signal": _a("raw(424, core, 0, 0, 0)"),
    "ptrace": _a("raw(101, 0x4206, victim, 0, 0)"),
    "ptrace of the daemon": _a("raw(101, 16, os.getppid(), 0, 0)"),
    "process_vm_readv": _a("raw(310, victim, room, 1, room, 1, 0)"),
    "process_vm_writev": _a("raw(311, victim, room, 1, room, 1, 0)"),
    "kcmp": _p("raw(312, victim, victim, 2, 0, 0)"),
    "process_madvise": _a("raw(440, core, room, 1, 4, 0)"),
    "move_pages": _a("raw(279, victim, 0, 0, 0, 0, 0)"),
    "prlimit of another": _p("raw(302, victim, 7, 0, room)"),
    "prlimit of the daemon": _a("raw(302, os.getppid(), 7, 0, room)"),
    "setpriority of another": _p("raw(141, 0, victim, 19)"),
    "sched_setaffinity": _p("raw(203, victim, 8, b'\\1' + bytes(7))"),
    "ioprio_set": _p("raw(251, 1, victim, 3 << 13)"),
    "get_robust_list": _a("raw(274, victim, room, room)"),
    "shmget": _p("raw(29, 0, 4096, 0o600)"),
    "shmat": _a("raw(30, 0, 0, 0)"),
    "msgget": _p("raw(68, 0, 0o600)"),
    "semget": _p("raw(64, 0, 1, 0o600)"),
    "mq_open": _a("raw(240, b'x', 0, 0, 0)"),
    "push a key into a terminal": _a("raw(16, 0, 0x5412, b'x')", "ENOTTY"),
    # programs and processes of its own
    "fork": _a("raw(57)"),
    "vfork": _a("raw(58)"),
    "clone of a process": _a("raw(56, 17, 0, 0, 0, 0)"),
    "clone with a namespace": _a("raw(56, 0x3D0F00 | 0x40000000, 0, 0, 0, 0)"),
    "clone3": _a("raw(435, bytes(88), 88)", "ENOSYS"),
    "execve": _a("raw(59, b'/bin/true', 0, 0)"),
    "execveat of the dump": _a("raw(322, core, b'', 0, 0, 0x1000)"),
    "map code": _p("raw(9, 0, 4096, 5, 0x22, -1, 0)"),
    "map code to write": _p("raw(9, 0, 4096, 7, 0x22, -1, 0)"),
    "map the dump as code": _p("raw(9, 0, 4096, 5, 2, core, 0)"),
    "mprotect to code": _p("raw(10, page, 4096, 5)"),
    "pkey_mprotect to code": _p("raw(329, page, 4096, 5, -1)"),
    "map shared memory": _p("raw(9, 0, 4096, 3, 0x21, -1, 0)"),
    "map what grows": _p("raw(9, 0, 4096, 3, 0x122, -1, 0)"),
    "modify_ldt": _a("raw(154, 0, 0, 0)"),
    "arch_prctl": _p("raw(158, 0x1003, room)"),
    # rights and limits
    "setuid": _a("raw(105, 0)"),
    "setgroups": _a("raw(116, 0, 0)"),
    "capset": _a("raw(126, bytes(8), bytes(24))"),
    "PR_SET_DUMPABLE": _p("raw(157, 4, 1, 0, 0, 0)"),
    "PR_SET_PDEATHSIG": _p("raw(157, 1, 0, 0, 0, 0)"),
    "PR_SET_SECCOMP": _a("raw(157, 22, 0, 0, 0, 0)"),
    "seccomp": _a("raw(317, 0, 0, 0)"),
    "raise a limit": _a("raw(302, 0, 7, bytes(16), 0)"),
    "setrlimit": _a("raw(160, 7, bytes(16))"),
    "personality": _p("raw(135, 0xFFFFFFFF)"),
    "chroot": _a("raw(161, b'.')"),
    "pivot_root": _a("raw(155, b'.', b'.')"),
    "unshare": _a("raw(272, 0x10000000)"),
    "setns": _a("raw(308, 0, 0)"),
    "mount": _a("raw(165, 0, 0, 0, 0, 0)"),
    "fsopen": _a("raw(430, b'proc', 0)"),
    "open_tree": _a("raw(428, -100, b'/', 0)"),
    # the kernel
    "bpf": _a("raw(321, 0, 0, 0)"),
    "perf_event_open": _a("raw(298, 0, 0, 0, 0, 0)"),
    "userfaultfd": _a("raw(323, 0)"),
    "add_key": _a("raw(248, b'user', b'x', b'x', 1, -3)"),
    "request_key": _a("raw(249, b'user', b'x', 0, 0)"),
    "keyctl": _a("raw(250, 0, -3, 0)"),
    "init_module": _a("raw(175, 0, 0, 0)"),
    "finit_module": _a("raw(313, core, 0, 0)"),
    "kexec_load": _a("raw(246, 0, 0, 0, 0)"),
    "reboot": _a("raw(169, 0, 0, 0)"),
    "syslog": _a("raw(103, 3, 0, 0)"),
    "iopl": _a("raw(172, 3)"),
    "settimeofday": _a("raw(164, 0, 0)"),
    "sethostname": _a("raw(170, b'x', 1)"),
    "swapon": _a("raw(167, secret, 0)"),
    "landlock_create_ruleset": _a("raw(444, 0, 0, 1)"),
    "a call of the future": _a("raw(999)"),
}


@dataclass(frozen=True)
class Targets:
    """What there is to reach, all of it real: it can be reached by any process of the worker's user.

    :ivar secret: a file that everybody may read, in ``folder``, where everybody may create some.
    :ivar victim: a process of the worker's user.
    :ivar public: the path of a socket that everybody may connect to.
    :ivar abstract: the name of another.
    """

    secret: str
    folder: str
    victim: int
    public: str
    abstract: str


_PRELUDE = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
room = ctypes.create_string_buffer(8192)

def raw(number, *arguments):
    "A system call's errno by name, or its value."
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result

page = libc.syscall(ctypes.c_long(9), ctypes.c_long(0), ctypes.c_long(4096), ctypes.c_long(3), ctypes.c_long(0x22),
                    ctypes.c_long(-1), ctypes.c_long(0))
answers = []
"""


def program(targets: Targets, names: Iterable[str] = ATTEMPTS) -> str:
    """Python that makes these attempts and leaves the answers, in their order, in a list ``answers``.

    Whoever runs it sets ``core``, a descriptor open for reading, and ``free``, one of a socket.
    """
    there = {"secret": targets.secret, "folder": targets.folder, "public": targets.public, "abstract": targets.abstract}
    head = "".join(f"{name} = {value.encode()!r}\n" for name, value in there.items())
    calls = "".join(f"answers.append({ATTEMPTS[name].call})\n" for name in names)
    return _PRELUDE + head + f"victim = {targets.victim}\n" + calls


def told(answers: list[str | int], names: Iterable[str] = ATTEMPTS) -> dict[str, str]:
    """What became of each attempt: an errno, or that it passed."""
    found = (each if isinstance(each, str) else "passed" for each in answers)
    return dict(zip(names, found, strict=True))
