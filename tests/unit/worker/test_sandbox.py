"""What a process can no longer do once it is in the sandbox, asked of the kernel."""

from __future__ import annotations

import os
import platform
import signal
import socket

import pytest

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="system call numbers of x86-64")
both_users = pytest.mark.parametrize("root", [pytest.param(True, marks=as_root), False], ids=["root", "user"])

ENTER = "done = sandbox.enter(SandboxLimits())\n"


@as_root
def test_protections_of_root_are_listed_and_in_force(run):
    done, status, groups, dumpable = run(
        "os.setgroups([1, 2, 3])\nstatus = open('/proc/self/status')\n"
        "done = sandbox.enter(SandboxLimits(uid=4321, gid=4322))\ntell(done)\n"
        "tell(dict(line.split(':', 1) for line in os.pread(status.fileno(), 9999, 0).decode().splitlines()))\n"
        "tell([os.getuid(), os.geteuid(), os.getgid(), os.getegid()])\n"
        "tell(0)\n"
    )
    assert done[:2] == ["network and IPC namespaces", "empty root"]
    assert {"rlimits", "empty bounding set", "uid 4321", "no capabilities", "no_new_privs", "seccomp"} <= set(done)
    assert groups == [4321, 4321, 4322, 4322]
    assert status["Uid"].split() == ["4321"] * 4
    assert status["Gid"].split() == ["4322"] * 4
    assert status["Groups"].split() == []
    assert {status[f"Cap{kind}"].strip() for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert dumpable == 0


def test_protections_of_a_user_are_listed(run):
    done = run(ENTER + "tell(done)", root=False)
    assert [each for each in done if not each.startswith("landlock")] == [
        "rlimits",
        "no capabilities",
        "no_new_privs",
        "seccomp",
    ]


@as_root
def test_a_root_worker_becomes_nobody_by_default(run):
    import pwd

    names = {entry.pw_name: entry.pw_uid for entry in pwd.getpwall()}
    expected = names.get("kvmd-worker", names.get("kvmd", 65534))
    assert run(ENTER + "tell(os.getuid())") == expected


@both_users
def test_python_says_so_too(run, root):
    names = run(
        ENTER + "def name(f):\n try: f()\n except OSError as e: return type(e).__name__\n"
        "tell([name(lambda: open('/etc/passwd')), name(socket.socket), name(os.fork), name(lambda: os.kill(1, 0)),\n"
        "      name(lambda: os.execv('/bin/true', ['true'])), name(lambda: os.listdir('/')), name(os.pipe)])",
        root=root,
    )
    assert set(names) == {"PermissionError"}


@as_root
def test_stat_of_a_path_finds_nothing(run):
    """AT_EMPTY_PATH with a path passes the filter, which can't follow pointers; but the root is empty and closed."""
    assert run(
        "number = 262 if os.uname().machine == 'x86_64' else 79\n"
        + ENTER
        + "buffer = ctypes.create_string_buffer(200)\n"
        "tell([raw(number, -100, path, buffer, 0x1000) for path in (b'/etc/passwd', b'/proc', b'/..', b'etc')]"
        " + [raw(number, 1, b'', buffer, 0x1000)])"
    ) == ["EACCES"] * 4 + [0]


@x86
def test_calls_of_the_x32_abi_end_the_process(run):
    assert run(ENTER + "raw(0x40000000 | 39)") == signal.SIGSYS


def test_what_a_worker_needs_still_works(run):
    ours, theirs = socket.socketpair()
    with ours, theirs, open(__file__, "rb") as file:
        socket.send_fds(ours, [b"here"], [file.fileno()])
        answer = run(
            "import time, select\n" + ENTER + "text, (fd,), *_ = socket.recv_fds(sock, 9, 1)\n"
            "sock.settimeout(5); again = socket.socket(fileno=os.dup(sock.fileno()))\n"
            "sock.sendall(b'sent')\n"
            "size = os.fstat(fd).st_size; m = mmap.mmap(fd, size, prot=mmap.PROT_READ)\n"
            "same = m[:] == os.pread(fd, size, 0) == open(fd, 'rb').read()\n"
            "poll = select.epoll(); poll.register(sock.fileno())\n"
            "thread = threading.Thread(target=time.sleep, args=(0.001,)); thread.start(); thread.join()\n"
            "heap = len(bytearray(50 << 20)); os.getrandom(8); time.time()\n"
            "resource.getrlimit(resource.RLIMIT_NOFILE); os.urandom(8); signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "tell([text.decode(), same, heap, os.isatty(fd)])",
            theirs,
        )
        assert answer == ["here", True, 50 << 20, False]
        assert ours.recv(9) == b"sent"


def test_abort_still_ends_the_process_with_its_signal(run):
    assert run(ENTER + "os.abort()") == signal.SIGABRT


def test_other_processes_of_the_same_user_cant_look_into_it(run):
    """PR_GET_DUMPABLE, which the filter would refuse to answer."""
    assert (
        run(
            "seccomp.install = lambda **k: None\nsyscalls.prctl(4, 1)\n" + ENTER + "tell(syscalls.prctl(3))", root=False
        )
        == 0
    )


def test_ambient_capabilities_go(run):
    """A daemon that is no root, but has capabilities from its unit file, must not hand them to its workers."""
    if os.getuid():
        pytest.skip("needs uid 0")
    status = run(
        "import struct\nstatus = open('/proc/self/status')\nsyscalls.prctl(8, 1)\nos.setresuid(7, 7, 7)\n"
        "both = struct.pack('6I', 4, 4, 4, 0, 0, 0)\n"
        "assert not libc.capset(struct.pack('Ii', 0x20080522, 0), both)\nsyscalls.prctl(47, 2, 2)\n"
        "def caps():\n"
        "  lines = os.pread(status.fileno(), 9999, 0).decode().splitlines()\n"
        "  return [line for line in lines if line.startswith('Cap')]\n"
        "tell(caps())\n" + ENTER + "tell(caps())"
    )
    before, after = ({line.split()[0]: int(line.split()[1], 16) for line in lines} for lines in status)
    assert before["CapAmb:"] == before["CapEff:"] == 4
    assert [after[kind] for kind in ("CapInh:", "CapPrm:", "CapEff:", "CapAmb:")] == [0] * 4


# --- limits


def test_memory_ends_in_memoryerror_and_not_in_death(run):
    assert run(
        "done = sandbox.enter(SandboxLimits(memory=300 << 20))\n"
        "try: x = bytearray(400 << 20)\nexcept MemoryError: tell('MemoryError')\n"
        "tell(len(bytearray(50 << 20)))\n"
    ) == ["MemoryError", 50 << 20]


def test_limits_are_set_and_hard(run):
    names = ["CORE", "FSIZE", "NOFILE", "DATA", "AS", "NPROC", "MEMLOCK"]
    answer = run(
        "done = sandbox.enter(SandboxLimits(memory=1 << 30, address_space=3 << 30, files=40, threads=9))\n"
        f"tell([resource.getrlimit(getattr(resource, 'RLIMIT_' + n)) for n in {names}])"
    )
    assert answer == [[v, v] for v in (0, 0, 40, 1 << 30, 3 << 30, 9, 0)]


def test_a_lower_limit_that_is_there_is_kept(run):
    assert run(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (30, 30))\n"
        + ENTER
        + "tell(resource.getrlimit(resource.RLIMIT_NOFILE))"
    ) == [30, 30]


def test_descriptors_run_out(run):
    assert (
        run(
            "done = sandbox.enter(SandboxLimits(files=20))\n"
            "try:\n while True: os.dup(0)\nexcept OSError as e: tell(errno.errorcode[e.errno])"
        )
        == "EMFILE"
    )


def test_no_threads(run):
    code = "try: threading.Thread(target=print).start()\nexcept RuntimeError as e: tell(str(e))"
    assert run("done = sandbox.enter(SandboxLimits(threads=0))\n" + code) == "can't start new thread"


@x86
@pytest.mark.parametrize(("writable", "answer"), [(False, "EPERM"), (True, "EBADF")])
def test_writing_at_an_offset_is_by_request(run, writable, answer):
    assert run(f"sandbox.enter(SandboxLimits(writable={writable}))\ntell(raw(18, -1, b'x', 1, 0))") == answer


def test_other_descriptors_are_closed(run):
    left = run(
        "extra = os.dup2(0, 9); high = os.dup2(0, 900)\n"
        "listing = os.open('/proc/self/fd', os.O_RDONLY)\n"
        "sandbox._close_others((1, 2, listing))\ntell(sorted(map(int, os.listdir(listing))))"
    )
    assert {1, 2} <= set(left)
    assert not {9, 900} & set(left)


# --- order and failure


def test_a_process_with_threads_is_refused(run):
    assert run(
        "stop = threading.Event(); t = threading.Thread(target=stop.wait); t.start()\n"
        "try: sandbox.enter(SandboxLimits())\n"
        "except OSError as e: tell([errno.errorcode[e.errno], os.getuid()])\nstop.set()"
    ) == ["EBUSY", os.getuid()]


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("os.setresuid = lambda *a: None", marks=as_root),
        pytest.param("os.setgroups = lambda *a: None; REAL([5])", marks=as_root),
        "syscalls.capset_empty = lambda: None" if os.getuid() == 0 else "syscalls.capabilities = lambda: (1, 1, 1)",
        "seccomp.install = fail",
        "landlock.restrict = fail",
        "bpf._ARCHITECTURES.clear()",
    ],
)
def test_a_mandatory_protection_that_fails_is_an_error(run, broken):
    code = "REAL = os.setgroups\ndef fail(*a, **k): raise OSError(errno.EPERM, 'forbidden')\n"
    if broken.startswith("syscalls.capset"):
        code += "os.setresuid = lambda *a: None; os.getresuid = lambda: (7, 7, 7)\n"
    code += f"{broken}\ntry: tell(sandbox.enter(SandboxLimits(uid=7, gid=8)))\n"
    code += "except OSError as e: tell(errno.errorcode[e.errno])"
    assert run(code) in ("EPERM", "ENOSYS")


@as_root
def test_a_worker_of_uid_0_is_refused(run):
    assert (
        run("try: sandbox.enter(SandboxLimits(uid=0, gid=0))\nexcept OSError as e: tell(errno.errorcode[e.errno])")
        == "EINVAL"
    )


@as_root
def test_what_a_container_forbids_is_left_out_of_the_list(run):
    """Without CAP_SYS_ADMIN and CAP_SYS_CHROOT, as under a tight unit file, the rest still holds."""
    done = run(
        "keep = 1 << 6 | 1 << 7\n"  # CAP_SETGID, CAP_SETUID
        "import struct\nheader, data = struct.pack('Ii', 0x20080522, 0), struct.pack('6I', keep, keep, 0, 0, 0, 0)\n"
        "assert not libc.capset(header, data)\n" + ENTER + "tell(done)"
    )
    assert not {"network and IPC namespaces", "empty root", "empty bounding set"} & set(done)
    assert {"uid 65534", "no capabilities", "no_new_privs", "seccomp"} <= set(done)


@as_root
def test_without_the_capability_to_change_the_uid_there_is_no_worker(run):
    assert (
        run(
            "import struct\nassert not libc.capset(struct.pack('Ii', 0x20080522, 0), bytes(24))\n"
            "try: sandbox.enter(SandboxLimits())\nexcept OSError as e: tell(errno.errorcode[e.errno])"
        )
        == "EPERM"
    )


def test_a_worker_dies_with_its_parent(run):
    """The child says that it is in the sandbox, its parent ends; the pipe's end of file says that it has, too."""
    start = (
        "r, w = os.pipe(); ready, go = os.pipe()\nmiddle = os.fork()\n"
        "if not middle:\n"
        "  parent = os.getpid(); os.close(r)\n"
        "  if not os.fork():\n"
        "    os.close(ready); sandbox.enter(SandboxLimits(parent=parent)); os.write(go, b'x')\n"
        "    while True: signal.sigtimedwait([signal.SIGUSR1], 60)\n"
        "  os.read(ready, 1); os._exit(0)\n"
        "os.close(w); os.close(go); os.waitpid(middle, 0); tell(os.read(r, 1).decode())"
    )
    assert run(start) == ""


def test_a_worker_whose_parent_is_gone_already_does_not_start(run):
    assert (
        run("try: sandbox.enter(SandboxLimits(parent=1234567))\nexcept OSError as e: tell(errno.errorcode[e.errno])")
        == "ESRCH"
    )
