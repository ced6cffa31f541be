"""The sandbox of a worker that reads /proc for a client: what it allows, and what it refuses all the same."""

from __future__ import annotations

import contextlib
import os
import platform
import struct
import subprocess
from collections.abc import Iterator

import pytest

from kvmd.handles.process import RunAs
from kvmd.worker import bpf, seccomp
from kvmd.worker.sandbox import Identity

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")

ENTER = """
from kvmd.worker.sandbox import Identity
from kvmd.images.procfs import rights, tree
proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
me = os.getpid()

def name(call, *words, **options):
    try:
        call(*words, **options)
    except OSError as failure:
        return errno.errorcode[failure.errno]
    return "OK"

def enter(*words):
    return sandbox.enter(SandboxLimits(identity=Identity(*words), threads=0))

def below(path, flags=os.O_RDONLY):
    return name(os.open, path, flags | os.O_NOFOLLOW, dir_fd=proc)
"""
USER = ENTER + "enter(4001, 4001)\n"


@contextlib.contextmanager
def child(uid: int) -> Iterator[int]:
    """A process of a user's, with an environment of its own."""
    command = ["sleep", "60"]
    with subprocess.Popen(command, user=uid, group=uid, extra_groups=[], env={"SECRET": str(uid)}) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def test_the_argument_says_it_all():
    for words in [(0, 0), (4001, 4002, (7, 8, 9)), (1, 2, (3,), True), (1, 2, (), True)]:
        assert Identity.decode(RunAs(*words).encode()) == Identity(*words)
    with pytest.raises(ValueError, match="unpack"):
        Identity.decode("7:7")


@pytest.mark.parametrize(("machine", "openat", "no_follow"), [("x86_64", 257, 0o400000), ("aarch64", 56, 0o100000)])
def test_the_filter_wants_no_follow_and_no_writing(machine, openat, no_follow):
    """On both architectures, whose numbers differ; the flags are openat's third argument."""
    arch = bpf.architecture(machine)
    load, jump_if_equal, jump_if_set = 0x20, 0x15, 0x45
    for view in seccomp.View:
        code = list(struct.iter_unpack("=HBBI", seccomp.build(arch, 4242, view=view)))
        places = [at for at, part in enumerate(code) if part[0] == jump_if_equal and part[3] == openat]
        assert bool(places) == (view is not seccomp.View.NONE)
        for at in places:
            rule = code[at + 1 : at + 1 + code[at][2]]
            tests = [part[3] for part in rule if part[0] == jump_if_set]
            assert [part[3] for part in rule if part[0] == load] == [16 + 8 * 2] * 2
            assert tests == [os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000, no_follow]


@as_root
def test_it_has_the_clients_rights_and_no_more(run):
    done, status, ids = run(
        ENTER + "os.setgroups([1, 2, 3])\nfd = os.open('/proc/self/status', os.O_RDONLY)\n"
        "tell(enter(4001, 4002, (9, 8)))\n"
        "tell(dict(line.split(':', 1) for line in os.pread(fd, 9999, 0).decode().splitlines()))\n"
        "tell([os.getuid(), os.geteuid(), os.getgid(), os.getegid()])\n"
    )
    assert {"rlimits", "uid 4001", "no capabilities", "no_new_privs", "seccomp"} <= set(done)
    assert not any(word.startswith("landlock") for word in done)
    assert ids == [4001, 4001, 4002, 4002]
    assert status["Groups"].split() == ["8", "9"]
    assert {status[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


@as_root
def test_proc_is_read_as_the_client_reads_it(run):
    with child(4001) as own, child(4002) as other:
        answers = run(
            USER + f"own, other = {own}, {other}\n"
            "tell([p in tree.numbers(proc) for p in (1, own, other, me)])\n"
            "tell([below(f'{p}/{f}') for p in (own, other) for f in ('stat', 'status', 'cmdline', 'environ')])\n"
            "tell(tree.read(proc, f'{own}/environ', 99).decode())\n"
            "tell(tree.numbers(proc, f'{own}/fd') == [0, 1, 2])\n"
            "tell(name(tree.numbers, proc, f'{other}/fd'))\n"
            "tell([below('loadavg'), below('stat'), below('swaps'), below('1/comm')])\n"
        )
    assert answers[0] == [True] * 4
    assert answers[1] == ["OK"] * 7 + ["EACCES"]
    assert answers[2:] == ["SECRET=4001\0", True, "EACCES", ["OK"] * 4]


@as_root
def test_a_landlock_domain_would_hide_the_clients_own(run):
    """Why there is none: to read an environment counts as looking into a process outside the domain."""
    with child(4001) as own:
        before, version, after = run(
            ENTER + "os.setgroups([]); os.setresgid(4001, 4001, 4001); os.setresuid(4001, 4001, 4001)\n"
            f"syscalls.prctl(38, 1)\npath = '{own}/environ'\ntell(below(path))\n"
            # A ruleset that handles TCP only, and so restricts no file at all.
            "import struct\nattributes = struct.pack('=QQQ', 0, 3, 0)\n"
            "try: fd = syscalls.syscall(444, attributes, 24, 0)\nexcept OSError: fd = -1\n"
            "if fd >= 0: syscalls.syscall(446, fd, 0)\ntell(fd)\ntell(below(path))"
        )
    if version < 0:
        pytest.skip("no Landlock with TCP in this kernel")
    assert (before, after) == ("OK", "EACCES")


@as_root
@x86
def test_nothing_else_is_opened_and_nothing_is_written(run):
    calls = {
        "open": ("raw(2, b'/etc/passwd', 0)", "EPERM"),
        "absolute": ("below('/etc/passwd')", "EACCES"),
        "openat2": ("raw(437, proc, b'stat', bytes(24), 24)", "EPERM"),
        "memory of init": ("below('1/mem')", "EACCES"),
        "environment of init": ("below('1/environ')", "EACCES"),
        "files of init": ("below('1/root/etc/passwd')", "EACCES"),
        "through a link": ("name(os.open, 'self', os.O_RDONLY, dir_fd=proc)", "EPERM"),
        "write": ("below(f'{me}/oom_score_adj', os.O_WRONLY)", "EPERM"),
        "write its comm": ("below(f'{me}/comm', os.O_RDWR)", "EPERM"),
        "write its memory": ("below(f'{me}/mem', os.O_RDWR)", "EPERM"),
        "write a setting": ("below('sys/kernel/hostname', os.O_WRONLY)", "EPERM"),
        "create": ("below('x', os.O_CREAT)", "EPERM"),
        "truncate": ("below(f'{me}/comm', os.O_TRUNC)", "EPERM"),
        "temporary file": ("below('.', os.O_TMPFILE)", "EPERM"),
        "mkdir": ("name(os.mkdir, 'x', dir_fd=proc)", "EPERM"),
        "unlink": ("name(os.unlink, 'x', dir_fd=proc)", "EPERM"),
        "chmod": ("raw(268, proc, b'1', 0)", "EPERM"),
        "access": ("raw(269, proc, b'1', 0)", "EPERM"),
        "chdir": ("raw(81, proc)", "EPERM"),
        "socket": ("name(socket.socket)", "EPERM"),
        "fork": ("name(os.fork)", "EPERM"),
        "thread": ("raw(56, 0x3D0F00, 0, 0, 0, 0)", "EPERM"),
        "exec": ("name(os.execv, '/bin/true', ['true'])", "EPERM"),
        "kill": ("raw(62, me, 0)", "EPERM"),
        "ptrace": ("raw(101, 16, 1, 0, 0)", "EPERM"),
        "process_vm_readv": ("raw(310, 1, 0, 0, 0, 0, 0)", "EPERM"),
        "pidfd_open": ("raw(434, 1, 0)", "EPERM"),
        "capget": ("raw(125, bytes(8), 0)", "EPERM"),
        "capset": ("raw(126, bytes(8), bytes(24))", "EPERM"),
        "setuid": ("raw(105, 0)", "EPERM"),
        "mmap of code": ("raw(9, 0, 4096, 5, 0x22, -1, 0)", "EPERM"),
    }
    code = "".join(f"answers[{what!r}] = {call}\n" for what, (call, _) in calls.items())
    answers = run(USER + "answers = {}\n" + code + "tell(answers)")
    assert answers == {what: expected for what, (_, expected) in calls.items()}


@as_root
def test_root_sees_what_root_would(run):
    with child(4002) as other:
        answers = run(
            ENTER + "done = enter(0, 0, (), True)\n"
            f"other, files = '{other}', lambda p: name(tree.numbers, proc, f'{{p}}/fd')\n"
            "tell([below(other + '/environ'), files(other), files(1)])\n"
            "tell(list(syscalls.capabilities()))\n"
            "tell([below(f'{me}/oom_score_adj', os.O_WRONLY), name(os.fork), name(socket.socket)])\n"
            "tell(raw(101, 16, 1, 0, 0))\ntell([below('/etc/passwd'), 'uid 0' in done])"
        )
    keep = 1 << 2 | 1 << 19
    assert answers[:4] == [["OK"] * 3, [keep, keep, 0], ["EPERM"] * 3, "EPERM"]
    assert answers[4] == ["ENOENT", True]


@as_root
def test_root_without_the_verb_has_no_capability(run):
    with child(4002) as other:
        code = f"tell(below('{other}/environ'))\ntell(below('1/environ'))"
        assert run(ENTER + "enter(0, 0)\n" + code) == ["EACCES", "EACCES"]


@as_root
def test_the_verb_opens_environments_for_a_moment_only(run):
    with child(4002) as other:
        answers = run(
            ENTER + f"done = enter(4001, 4001, (), True)\nenviron = '{other}/environ'\n"
            "tell([os.getuid(), list(syscalls.capabilities()), below(environ)])\n"
            "with rights.raised(): tell(tree.read(proc, environ, 99).decode())\n"
            f"tell([below(environ), name(tree.numbers, proc, '{other}/fd'), list(syscalls.capabilities())])\n"
            "tell([raw(101, 16, 1, 0, 0), raw(310, 1, 0, 0, 0, 0, 0)])\n"
            "tell(name(rights.capset, 1 << 21, 1 << 21))\ntell('capabilities to read any environment' in done)"
        )
    keep = 1 << 2 | 1 << 19
    assert answers[0] == [4001, [0, keep, 0], "EACCES"]
    assert answers[1] == "SECRET=4002\0"
    assert answers[2] == ["EACCES", "EACCES", [0, keep, 0]]
    assert answers[3:] == [["EPERM", "EPERM"], "EPERM", True]


@as_root
def test_hidepid_hides_from_it_what_it_hides_from_the_client(run, tmp_path):
    with child(4001) as own, child(4002) as other:
        answers = run(
            ENTER + f"directory = {str(tmp_path)!r}.encode()\nsyscalls.unshare(0x20000)\n"
            "assert not libc.mount(b'none', b'/', None, 1 << 18 | 1 << 14, None)\n"
            "if libc.mount(b'proc', directory, b'proc', 0, b'hidepid=2'): tell('no mount'); sys.exit()\n"
            "proc = os.open(directory, os.O_PATH)\nenter(4001, 4001)\n"
            f"tell([p in tree.numbers(proc) for p in (1, {own}, {other})])\n"
            f"tell([below('1/stat'), below('{own}/stat'), below('{other}/stat')])"
        )
    if answers == "no mount":
        pytest.skip("/proc can't be mounted here")
    assert answers == [[False, True, False], ["ENOENT", "OK", "ENOENT"]]


@pytest.mark.parametrize("uid", [12345, 0])
def test_a_daemon_that_is_not_root_shows_it_to_its_own_user_and_to_root(run, uid):
    if os.getuid():
        pytest.skip("needs uid 0 to become 12345")
    done, ids, own, init = run(
        ENTER + f"tell(enter({uid}, {uid}, (), True))\ntell([os.getuid(), os.getgid()])\n"
        "tell(below(f'{me}/stat'))\ntell(below('1/environ'))",
        root=False,
    )
    assert done == ["rlimits", "no capabilities", "no_new_privs", "seccomp"]
    assert (ids, own, init) == ([12345, 12345], "OK", "EACCES")


@as_root
def test_a_daemon_that_is_not_root_becomes_nobody_else(run):
    assert run(ENTER + "tell(name(enter, 4001, 4001))", root=False) == "EPERM"


@as_root
def test_root_without_the_capability_to_change_its_uid_serves_root_alone(run):
    drop = "import struct\nassert not libc.capset(struct.pack('Ii', 0x20080522, 0), bytes(24))\n"
    assert run(ENTER + drop + "tell(name(enter, 4001, 4001))") == "EPERM"
    assert run(ENTER + drop + "tell('no capabilities' in enter(0, 0, (), True))") is True


@as_root
@pytest.mark.parametrize(
    "broken",
    [
        "os.setresuid = lambda *a: None",
        "os.setgroups = lambda *a: None",
        "rights.capset = sandbox.capset = lambda *a: None",
        "syscalls.prctl = lambda *a, **k: 0",
    ],
)
def test_rights_that_did_not_change_are_an_error(run, broken):
    code = f"os.setgroups([5])\n{broken}\ntell(name(enter, 4001, 4001, (6,), True))"
    assert run(ENTER + code) == "EPERM"
