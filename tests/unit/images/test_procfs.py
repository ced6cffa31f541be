"""KVM_NO_FILES on a /proc made up for the purpose, and on this machine's own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files, Kind
from kvmd.images.procfs import tree
from kvmd.images.procfs.image import ProcfsImage
from kvmd.v1 import memory_pb2, process_pb2, system_pb2
from procfs import Proc, stat_line, status_text

HZ = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
ARGUMENTS, ENVIRONMENT = process_pb2.STRINGS_KIND_ARGUMENTS, process_pb2.STRINGS_KIND_ENVIRONMENT


@pytest.fixture
def proc(tmp_path: Path) -> Iterator[Proc]:
    made = Proc(tmp_path)
    yield made
    os.close(made.fd)


@pytest.fixture
def real() -> Iterator[ProcfsImage]:
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    yield ProcfsImage(Files(None, kind=Kind.PROCFS, extra={"proc": File(fd, "/proc")}))
    os.close(fd)


def refusal(call: Callable[..., Any], *words: Any) -> KvmError:
    with pytest.raises(KvmError) as failure:
        list(call(*words))
    return failure.value


# --- processes


def test_every_field(proc: Proc) -> None:
    stat = {"state": "D", "ppid": 3, "pgid": 6, "sid": 7, "tty": 34816, "nice": -5, "threads": 9, "start": 250}
    proc.task(5, comm=b"a) (S\n1", vsize=12288, rss=2, **stat)
    (found,) = proc.list()
    assert found == process_pb2.Process(
        pid=5, tgid=5, ppid=3, pgid=6, sid=7, uid=1, euid=2, gid=5, egid=6, state="D", nice=-5, num_threads=9,
        start_time_ns=250 * (1_000_000_000 // HZ), rss_bytes=2 * PAGE, vsz_bytes=12288, comm=b"a) (S\n1",
        tty=os.makedev(136, 0),
    )  # fmt: skip


def test_kernel_threads_and_zombies_have_no_memory(proc: Proc) -> None:
    proc.task(2, vsize=0, flags=0x00208040)
    proc.task(3, vsize=4096, flags=0x00200000)  # one that borrows a process's memory
    proc.task(4, vsize=0, state="Z")
    found = proc.list(arguments=True)
    assert [process.kernel_thread for process in found] == [True, True, False]
    assert not any(process.HasField("rss_bytes") or process.HasField("vsz_bytes") for process in found)
    assert not any(process.HasField("tty") for process in found)
    assert {process.arguments.error.reason for process in found} == {"NO_USER_MEMORY"}
    assert [process.pid for process in proc.list(filter=10)] == [2, 3]
    for pid in (2, 3, 4):
        assert refusal(proc.image.strings, pid, ARGUMENTS, 0).reason is Reason.NO_USER_MEMORY


def test_filters(proc: Proc) -> None:
    proc.task(5, pgid=50, sid=60, tty=1025)
    proc.task(11, pgid=51, sid=61)
    proc.write("11/status", status_text(11, "70 71 0 0", "80 81 0 0"))
    wanted = {2: (11, 5), 3: (51, 50), 4: (61, 60), 5: (-1, os.makedev(4, 1)), 6: (71, 2), 7: (70, 1), 8: (81, 6)}
    for which, (of_11, of_5) in (wanted | {9: (80, 5)}).items():
        assert [p.pid for p in proc.list(filter=which, argument=of_11)] == [11], which
        assert [p.pid for p in proc.list(filter=which, argument=of_5)] == [5], which
        assert proc.list(filter=which, argument=999) == []
    assert [p.pid for p in proc.list()] == [p.pid for p in proc.list(filter=1)] == [5, 11]
    for none in (0, -1, 1 << 31, -(1 << 62)):
        assert proc.list(filter=2, argument=none) == []
    assert refusal(lambda: proc.list(filter=77)).reason is Reason.BAD_ARGUMENT


def test_threads_are_listed_in_order_and_only_if_asked_for(proc: Proc) -> None:
    proc.task(5)
    proc.task(9, 5)
    proc.task(7)
    (proc.root / "9").rename(proc.root / "hidden")  # reachable, but not listed, as in /proc
    assert [p.pid for p in proc.list()] == [5, 7]
    assert [(p.pid, p.tgid) for p in proc.list(threads=True)] == [(5, 5), (7, 7), (9, 5)]
    assert [(p.pid, p.tgid) for p in proc.list(threads=True, filter=2, argument=5)] == [(5, 5), (9, 5)]
    (proc.root / "hidden").rename(proc.root / "9")
    assert proc.list(filter=2, argument=9) == []
    assert proc.list(filter=2, argument=9, threads=True) == []


@pytest.mark.parametrize("missing", ["stat", "status", "comm", "cmdline"])
def test_a_process_that_ends_meanwhile_is_left_out_whole(proc: Proc, missing: str) -> None:
    proc.task(5)
    proc.task(6)
    (proc.root / "5" / missing).unlink()
    assert [p.pid for p in proc.list(arguments=True)] == [6]


@pytest.mark.parametrize("how", [ProcessLookupError, PermissionError, FileNotFoundError])
def test_so_is_one_whose_files_fail_or_are_hidden(proc: Proc, monkeypatch: pytest.MonkeyPatch, how: type) -> None:
    proc.task(5)
    proc.task(6)
    inode = os.stat(proc.root / "5").st_ino
    read = tree.read

    def fails(directory: int, name: str, most: int) -> bytes:
        if name == "status" and os.fstat(directory).st_ino == inode:
            raise how
        return read(directory, name, most)

    monkeypatch.setattr(tree, "read", fails)
    assert [p.pid for p in proc.list(arguments=True)] == [6]


def test_a_corrupt_one_is_told_after_the_others(proc: Proc) -> None:
    for pid, line in ((5, b"rubbish"), (6, stat_line(nice=1 << 40)), (7, stat_line())):
        proc.task(pid)
        proc.write(f"{pid}/stat", line)
    found = proc.image.processes(process_pb2.GetProcsRequest())
    assert next(found).pid == 7
    assert refusal(lambda: found).reason is Reason.CORRUPT_DATA


def test_entries_that_are_no_processes_are_none(proc: Proc) -> None:
    proc.task(5)
    proc.write("6", b"a file")
    (proc.root / "8").symlink_to(proc.root / "5")  # none is followed
    for name in ("self", "5x", "\u0665", "-5", "sys"):
        (proc.root / name).mkdir()
    (proc.root / "5" / "comm").unlink()
    assert proc.list() == []


# --- strings


def test_strings(proc: Proc) -> None:
    proc.task(5)
    image = proc.image
    assert list(image.strings(5, ARGUMENTS, 0).values) == [b"a", b"", b"b c"]
    assert list(image.strings(5, ENVIRONMENT, 0).values) == [b"A=1", b"B"]
    assert [list(image.strings(5, ARGUMENTS, n).values) for n in (1, 2, 3, 4)] == [
        [b"a"], [b"a"], [b"a", b""], [b"a", b"", b"b"],
    ]  # fmt: skip
    assert list(proc.list(arguments=True)[0].arguments.values) == [b"a", b"", b"b c"]
    proc.write("5/cmdline", b"")
    assert list(image.strings(5, ARGUMENTS, 0).values) == []
    proc.write("5/cmdline", b"x\0" * (3 << 20))
    assert len(image.strings(5, ARGUMENTS, 0).values) == 1 << 20
    assert refusal(image.strings, 5, 0, 0).reason is Reason.BAD_ARGUMENT
    for none in (6, 0, -1, 1 << 31):
        assert refusal(image.strings, none, ARGUMENTS, 0).reason is Reason.NO_SUCH_PROCESS


def test_an_environment_of_somebody_elses_is_refused(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.task(5)
    read = tree.read

    def fails(directory: int, name: str, most: int) -> bytes:
        if name == "environ":
            raise PermissionError
        return read(directory, name, most)

    monkeypatch.setattr(tree, "read", fails)
    failure = refusal(proc.image.strings, 5, ENVIRONMENT, 0)
    assert (failure.reason, failure.text) == (Reason.POLICY_DENIED, "/proc/5/environ: Permission denied")
    assert (failure.metadata["verb"], failure.metadata["image"]) == ("environment", "live")


# --- the system


def test_system_files(proc: Proc) -> None:
    proc.write("loadavg", "0.25 1.50 12.75 3/99 1234\n")
    proc.write("stat", "cpu  1 2 3 4 5 6 7 8 9 10 11\ncpu0 1 2 3 4\ncpu3 0 0 0 5\nintr 12 0\ncpu9 9\n")
    proc.write("softirqs", "                    CPU0       CPU1       CPU3\n  HI: 0 0 0\n")
    proc.write("swaps", "Filename Type Size Used Priority\n/a\\040b\\134 file 8 4 -2\n/dev/x partition 16 0 5\n")
    image, tick = proc.image, 1_000_000_000 // HZ
    assert image.load_average() == [0.25, 1.5, 12.75]
    total, first, third = image.cpu_times()
    assert (total.cpu, total.user_ns, total.guest_nice_ns) == (-1, tick, 10 * tick)
    assert (first.cpu, first.idle_ns, first.iowait_ns) == (0, 4 * tick, 0)
    assert (third.cpu, third.idle_ns) == (3, 5 * tick)
    cpus = image.cpus()
    assert cpus.max_cpus == 4
    assert [(cpu.number, cpu.online, cpu.HasField("offset")) for cpu in cpus.cpus] == [
        (0, True, False), (1, False, False), (3, True, False),
    ]  # fmt: skip
    assert image.swap_areas() == [
        system_pb2.SwapArea(path=b"/a b\\", number=0, kind="file", size_bytes=8192, used_bytes=4096, priority=-2),
        system_pb2.SwapArea(path=b"/dev/x", number=1, kind="partition", size_bytes=16384, priority=5),
    ]
    (proc.root / "softirqs").unlink()
    assert [cpu.number for cpu in image.cpus().cpus] == [0, 3]


@pytest.mark.parametrize(("mask", "letters"), [("0", ""), ("1", "P"), ("512", "GW"), ("12289", "POE"), ("rubbish", "")])
def test_info(proc: Proc, mask: str, letters: str) -> None:
    proc.write("version", "Linux version 6.1 (me@here) #1\n")
    proc.write("sys/kernel/tainted", f"{mask}\n")
    proc.write("meminfo", "MemTotal:        2048 kB\nMemFree: 1 kB\n")
    info = proc.image.info()
    uts = os.uname()
    assert (info.format, info.live, info.banner) == ("procfs", True, "Linux version 6.1 (me@here) #1")
    assert (info.release, info.version, info.machine, info.nodename) == (uts[2], uts[3], uts[4], uts[1])
    assert (info.page_size, info.memory_bytes, info.taint) == (PAGE, 2 << 20, letters)
    assert abs(info.time_ns - time.time_ns()) < 60 * 10**9
    assert not info.HasField("cpus_online")
    assert list(info.load_average) == []
    assert proc.image.kernel_name() == ""


def test_files_that_are_not_there_say_so(proc: Proc) -> None:
    image = proc.image
    for call, name in ((image.load_average, "loadavg"), (image.cpu_times, "stat"), (image.swap_areas, "swaps")):
        failure = refusal(call)
        assert (failure.reason, failure.metadata["path"]) == (Reason.SOURCE_NOT_FOUND, f"/proc/{name}")
        assert failure.text == f"/proc/{name}: No such file or directory"


def test_what_needs_kernel_memory_is_refused_with_libkvms_text(proc: Proc) -> None:
    image, user = proc.image, memory_pb2.ADDRESS_SPACE_USER
    calls = {
        "kvm_read": lambda: image.read(0, 8, memory_pb2.ADDRESS_SPACE_KERNEL),
        "kvm_uread": lambda: image.read(0, 8, user, 1),
        "kvm_write": lambda: image.write(0, b"x"),
        "kvm_nlist": lambda: image.symbols(["jiffies"]),
        "kvm_walk_pages": lambda: image.pages(0),
        "the kernel's log": image.log,
    }
    for name, call in calls.items():
        failure = refusal(call)
        assert failure.reason is Reason.NO_FILES
        assert failure.text == f"kvm_open called with KVM_NO_FILES, can't use {name}"
    assert refusal(ProcfsImage, Files(None, kind=Kind.PROCFS)).reason is Reason.BAD_ARGUMENT


# --- this machine


def test_a_process_of_ours(real: ProcfsImage) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "an argument", ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with subprocess.Popen(command, env={"ONE": "1", "TWO": ""}, **pipes) as child:
        assert child.stdout.readline() == b"\n"
        request = process_pb2.GetProcsRequest(filter=2, argument=child.pid, arguments=True)
        (found,) = real.processes(request)
        assert (found.ppid, found.pgid, found.sid) == (os.getpid(), os.getpgid(child.pid), os.getsid(child.pid))
        assert (found.uid, found.euid, found.gid, found.egid) == (os.getuid(), os.geteuid(), os.getgid(), os.getegid())
        assert (found.nice, found.num_threads) == (os.getpriority(os.PRIO_PROCESS, child.pid), 1)
        assert list(found.arguments.values) == [os.fsencode(word) for word in command]
        assert list(real.strings(child.pid, ENVIRONMENT, 0).values)[:2] == [b"ONE=1", b"TWO="]
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        assert before - 10**9 // HZ <= found.start_time_ns <= after
        statm = Path(f"/proc/{child.pid}/statm").read_text().split()
        assert found.vsz_bytes == int(statm[0]) * PAGE
        assert abs(found.rss_bytes - int(statm[1]) * PAGE) < 4 << 20
        child.stdin.close()
    assert list(real.processes(request)) == []
    assert refusal(real.strings, child.pid, ARGUMENTS, 0).reason is Reason.NO_SUCH_PROCESS


def test_open_files_of_ours(real: ProcfsImage, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(tmp_path / "file", "rb", buffering=0))
        file.read(4)
        directory = os.open(tmp_path, os.O_RDONLY)
        stack.callback(os.close, directory)
        pipe = os.pipe()
        stack.callback(os.close, pipe[0])
        stack.callback(os.close, pipe[1])
        event = os.eventfd(0)
        stack.callback(os.close, event)
        found = {record.fd: record for record in real.files(os.getpid())}
        status = os.fstat(file.fileno())
        record = found[file.fileno()]
        assert (record.pid, record.path, record.type) == (os.getpid(), os.fsencode(tmp_path / "file"), "regular")
        assert (record.position, record.flags & os.O_ACCMODE, record.uid) == (4, os.O_RDONLY, os.getuid())
        assert (record.inode, record.device) == (status.st_ino, status.st_dev)
        assert not record.HasField("file_address")
        assert found[directory].type == "directory"
        assert [(found[end].type, found[end].path[:6], found[end].flags & 3) for end in pipe] == [
            ("fifo", b"pipe:[", 0), ("fifo", b"pipe:[", 1),
        ]  # fmt: skip
        assert (found[event].path, found[event].type) == (b"anon_inode:[eventfd]", "unknown")
    assert list(found) == sorted(found)
    every = list(real.files(0))
    assert [(record.pid, record.fd) for record in every] == sorted((record.pid, record.fd) for record in every)
    assert os.getpid() in {record.pid for record in every}
    for none in (1 << 30, -1):
        assert refusal(real.files, none).reason is Reason.NO_SUCH_PROCESS


def test_the_list_while_processes_come_and_go(real: ProcfsImage) -> None:
    """Every process that lived throughout is there, and no list fails."""
    storm = subprocess.Popen(["sh", "-c", "while :; do /bin/true & /bin/true & wait; done"])
    try:
        for number in range(50):
            before = {int(name) for name in os.listdir("/proc") if name.isdigit()}
            found = [
                p.pid for p in real.processes(process_pb2.GetProcsRequest(arguments=True, threads=number % 2 == 1))
            ]
            after = {int(name) for name in os.listdir("/proc") if name.isdigit()}
            assert found == sorted(set(found))
            assert before & after <= set(found)
    finally:
        storm.kill()
        storm.wait()


def test_the_system_agrees(real: ProcfsImage) -> None:
    info = real.info()
    assert info.banner == Path("/proc/version").read_text().rstrip("\n")
    assert info.cpus_online == os.sysconf("SC_NPROCESSORS_ONLN")
    assert info.memory_bytes // 1024 == int(Path("/proc/meminfo").read_text().split()[1])
    assert real.load_average() == pytest.approx(os.getloadavg(), abs=0.5)
    assert [cpu.cpu for cpu in real.cpu_times()] == [-1, *(cpu.number for cpu in real.cpus().cpus if cpu.online)]
    assert real.cpu_times()[0].user_ns > 0
    assert len(real.cpus().cpus) == os.sysconf("SC_NPROCESSORS_CONF")
    assert len(real.swap_areas()) == len(Path("/proc/swaps").read_text().splitlines()) - 1
