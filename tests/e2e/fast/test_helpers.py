"""Helpers of a real worker: long reads give drgn's bytes, whatever becomes of the processes that read them."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drgn import Program

import libkvm
from daemon import Daemon, running_daemon
from direct import ROOT, link, worker
from images import fixture
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.worker import helpers
from procs import eventually, open_folder, resident, workers
from repack import PAGE, flattened, repacked

SOURCE = fixture("qemu/vmcore.kdump").path
FORMS = ["zlib", "zstd", "lzo", "snappy", "raw", "zlib-spread", "zlib-flat"]
CONFIG = "[limits]\nworker_helpers = 2\nworker_linger = 0\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with open_folder() as made:
        for form in FORMS:
            codec, _, how = form.partition("-")
            data = repacked(SOURCE, codec, spread=how == "spread")
            (made / form).write_bytes(flattened(data) if how == "flat" else data)
        shutil.copy(fixture("kdump/vmcore.elfd").path, made / "elf")
        yield made


@pytest.fixture
def daemon(folder: Path) -> Iterator[Daemon]:
    with running_daemon([folder], CONFIG) as running:
        yield running


@pytest.fixture(scope="module")
def truth() -> list[tuple[int, bytes]]:
    """Physical memory as drgn has it, in runs of at least 256 KiB."""
    prog = Program()
    prog.set_core_dump(str(SOURCE))
    with SOURCE.open("rb") as file:
        trouble = LinuxImage(Files(File(file.fileno(), "dump"))).kernel.dump.layout.trouble
        runs: list[tuple[int, int]] = []
        for page in (at for at in range(0, 512 * MIB, PAGE) if trouble(at) is None):
            if runs and sum(runs[-1]) == page:
                runs[-1] = (runs[-1][0], runs[-1][1] + PAGE)
            else:
                runs.append((page, PAGE))
    return [(start, prog.read(start, size, True)) for start, size in runs if size >= 256 << 10]


def of(pid: int) -> list[int]:
    """A worker's helpers."""
    return sorted(workers(pid))


def read(kernel: libkvm.Kernel, truth: list[tuple[int, bytes]], step: Callable[[int], object] = lambda _: None) -> int:
    """Read all of it twice by either way, in odd pieces; answers how many bytes."""
    total = 0
    for number, (start, data) in enumerate(truth):
        step(number)
        assert kernel.read(start, len(data), physical=True) == data
        inside = kernel.read(start + 5, len(data) - 77, physical=True)
        assert inside == data[5:-72]
        total += 2 * len(data)
    return total


def viewed(kernel: libkvm.Kernel, start: int, data: bytes, kind: type) -> None:
    """Look at all of it where it is."""
    done = 0
    for view in kernel.views(start, len(data), physical=True):
        assert isinstance(view.obj, kind)
        assert view == data[done : done + len(view)]
        done += len(view)
    assert done == len(data)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_bytes_as_drgn(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]], form: str) -> None:
    """By the fast path, and by gRPC: a call, and a stream, whose chunks are in order."""
    with libkvm.connect(daemon.target) as client, client.open(str(folder / form)) as kernel:
        assert read(kernel, truth) > 16 * MIB
        assert link(kernel).pages is not None
        assert len(of(worker(daemon))) == 2
        start, data = max(truth, key=lambda each: len(each[1]))
        viewed(kernel, start, data, mmap.mmap)
        kernel._direct.drop()
        viewed(kernel, start, data, bytes)
        read(kernel, truth)
        assert b"".join(kernel.stream(start, len(data), physical=True)) == data
    assert not [line for line in list(daemon.log) if b"helper" in line]


@pytest.mark.parametrize("form", ["zlib", "snappy"])
def test_virtual_memory(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]], form: str) -> None:
    """The direct mapping, the page cache before and after it is filled, and by a second client."""
    with SOURCE.open("rb") as file:
        kernel = LinuxImage(Files(File(file.fileno(), "dump"))).kernel
        found = kernel.builtin("page_offset_base")
        base = int.from_bytes(kernel.memory.kernel(found.value, 8), "little")
    for _ in range(2):
        with libkvm.connect(daemon.target) as client, client.open(str(folder / form)) as opened:
            for start, data in truth:
                assert opened.read(base + start, len(data)) == data
                assert opened.read(base + start + 1, len(data) - 2) == data[1:-1]


def test_an_error_names_the_first_byte(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]]) -> None:
    """However far helpers were with what lies behind it."""
    with libkvm.connect(daemon.target) as client, client.open(str(folder / "zlib")) as kernel:
        plain = client.open(str(folder / "zlib"))
        plain._direct.drop()
        for start, data in truth:
            for each in (kernel, plain):
                with pytest.raises(libkvm.FaultError) as fault:
                    each.read(start + 3, len(data) + MIB // 2, physical=True)
                assert fault.value.address == start + len(data)
                assert fault.value.metadata["readable"] == str(len(data) - 3)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_helper_is_lost(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]], how: signal.Signals) -> None:
    """In the middle of a read: the bytes are the same, the worker is, and nothing of it is left when it goes."""
    with libkvm.connect(daemon.target) as client, client.open(str(folder / "snappy")) as kernel:
        read(kernel, truth[:2])
        pid = worker(daemon)
        lost = of(pid)
        for each in lost:
            killer = threading.Timer(0.01, os.kill, (each, how))
            killer.start()
            read(kernel, truth)
            killer.join()
            read(kernel, truth)
        assert worker(daemon) == pid
        if how is signal.SIGKILL:
            eventually(lambda: not of(pid), 5)
            assert sum(b"goes on without a helper" in line for line in list(daemon.log)) == 2
            assert len(os.listdir(f"/proc/{pid}/fd")) < 12
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 10)
    eventually(lambda: not [each for each in lost if alive(each)], 10)


def alive(pid: int) -> bool:
    """Whether a process is there, and is more than an entry that nobody has waited for."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def test_they_end_with_the_worker(daemon: Daemon, folder: Path) -> None:
    """Even with one that is killed, and that could tell them nothing."""
    with libkvm.connect(daemon.target) as client, client.open(str(folder / "zlib")) as kernel:
        kernel.read(MIB, MIB // 4, physical=True)
        pid = worker(daemon)
        theirs = of(pid)
        assert len(theirs) == 2
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not [each for each in theirs if alive(each)], 5)


def test_bounds(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]]) -> None:
    """Each has its part of the worker's memory, the worker the rest; and what it takes does not grow with reads."""

    def limit(pid: int, name: str) -> int:
        [value] = re.findall(rf"{name} +(\d+)", Path(f"/proc/{pid}/limits").read_text())
        return int(value)

    with libkvm.connect(daemon.target) as client, client.open(str(folder / "snappy")) as kernel:
        read(kernel, truth[:3])
        pid = worker(daemon)
        assert [limit(each, "Max data size") for each in of(pid)] == [helpers.MEMORY] * 2
        assert limit(pid, "Max data size") == (4 << 30) - 2 * helpers.MEMORY
        before = [resident(each) for each in of(pid)]
        for _ in range(3):
            read(kernel, truth)
        assert max(resident(each) - size for each, size in zip(of(pid), before, strict=True)) < 8 * MIB
        assert max(resident(each) for each in of(pid)) < 96 * MIB


@ROOT
def test_each_is_in_a_sandbox_of_its_own(daemon: Daemon, folder: Path, truth: list[tuple[int, bytes]]) -> None:
    with libkvm.connect(daemon.target) as client, client.open(str(folder / "zlib")) as kernel:
        read(kernel, truth[:3])
        pid = worker(daemon)
        for each in of(pid):
            status = dict(
                line.split(":\t", 1) for line in Path(f"/proc/{each}/status").read_text().splitlines() if ":\t" in line
            )
            assert status["Seccomp"] == "2"
            assert status["NoNewPrivs"] == "1"
            assert {status[key] for key in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")} == {"0" * 16}
            assert "0" not in status["Uid"].split()
            assert os.readlink(f"/proc/{each}/ns/net") != os.readlink("/proc/self/ns/net")
            # Standard streams, and the socket: no file.
            links = [os.readlink(f"/proc/{each}/fd/{fd}") for fd in sorted(os.listdir(f"/proc/{each}/fd"), key=int)]
            assert links[:3] == ["/dev/null"] * 3
            assert links[3].startswith("socket:")
            assert len(links) == 4


@pytest.mark.parametrize(("config", "number"), [("worker_helpers = 0", 0), ("worker_memory = 268435456", 2)])
def test_how_many_there_are(folder: Path, truth: list[tuple[int, bytes]], config: str, number: int) -> None:
    """None if none are wanted; and not so many that the worker keeps less than half of its memory."""
    text = "[limits]\n" + (config if "helpers" in config else f"worker_helpers = 3\n{config}") + "\n"
    with (
        running_daemon([folder], text) as running,
        libkvm.connect(running.target) as client,
        client.open(str(folder / "zlib")) as kernel,
    ):
        read(kernel, truth[:3])
        assert len(of(worker(running))) == number


def test_only_packed_dumps_have_helpers(daemon: Daemon, folder: Path) -> None:
    """Those of another image are let go as soon as it is known what it is."""
    with libkvm.connect(daemon.target) as client, client.open(str(folder / "elf")) as kernel:
        kernel.read(MIB, 100, physical=True)
        pid = worker(daemon)
        eventually(lambda: not [each for each in of(pid) if alive(each)], 5)
    assert not [line for line in list(daemon.log) if b"helper" in line]
