"""One worker an image: shared, ended when idle, and alone in its death."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import libkvm
from daemon import Daemon, running_daemon
from images import fixture
from procs import eventually, workers

CONFIG = "[limits]\nworker_linger = 0.5\nworker_timeout = 2\n"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    folders = [fixture(f"{name}/vmcore.kdump").path.parent for name in ("qemu", "la57")]
    with running_daemon(folders, CONFIG) as running:
        yield running


def busy(daemon: Daemon, count: int) -> set[int]:
    """The workers that were given a dump, by the audit record, and live, once there are so many."""

    def now() -> set[int]:
        records = [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]
        return {record.get("worker") for record in records} & workers(daemon.process.pid)

    eventually(lambda: len(now()) == count, 3)
    return now()


def banner(kernel: libkvm.Kernel) -> bytes:
    return kernel.read(kernel.symbol("linux_banner").value, 13)


def test_same_files_share_a_worker_and_others_do_not(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as one, libkvm.connect(daemon.target) as two:
        kernels = [client.open(corefile=fixture("qemu/vmcore.kdump").path) for client in (one, two, two)]
        busy(daemon, 1)
        kernels.append(two.open(corefile=fixture("la57/vmcore.kdump").path))
        busy(daemon, 2)
        for kernel in kernels:
            kernel.close()
        busy(daemon, 0)


def test_concurrent_opens_of_one_image_share_a_worker(daemon: Daemon) -> None:
    def opened() -> None:
        with libkvm.connect(daemon.target) as client:
            kernels.append(client.open(corefile=fixture("qemu/vmcore.kdump").path))
            barrier.wait()

    kernels: list[libkvm.Kernel] = []
    barrier = threading.Barrier(9)
    threads = [threading.Thread(target=opened) for _ in range(8)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(kernels) == 8, 10)
    busy(daemon, 1)
    barrier.wait()
    for thread in threads:
        thread.join()


def test_dead_worker_takes_down_its_descriptors_alone(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client:
        doomed = client.open(corefile=fixture("qemu/vmcore.kdump").path)
        (worker,) = busy(daemon, 1)
        other = client.open(corefile=fixture("la57/vmcore.kdump").path)
        os.kill(worker, signal.SIGKILL)
        for _ in range(2):
            with pytest.raises(libkvm.UnavailableError, match=r"signal 9 \(SIGKILL\)") as failure:
                banner(doomed)
            assert failure.value.reason.value == "WORKER_DIED"
        assert banner(other) == b"Linux version"
        with client.open(corefile=fixture("qemu/vmcore.kdump").path) as again:
            assert banner(again) == b"Linux version"
            with pytest.raises(libkvm.UnavailableError):
                banner(doomed)
        doomed.close()
        other.close()


def test_worker_killed_during_a_call(daemon: Daemon) -> None:
    """The call that is under way ends with the reason, not with a hang."""
    with libkvm.connect(daemon.target) as client:
        kernel = client.open(corefile=fixture("qemu/vmcore.kdump").path)
        (worker,) = busy(daemon, 1)
        os.kill(worker, signal.SIGSTOP)
        timer = threading.Timer(0.3, os.kill, (worker, signal.SIGKILL))
        timer.start()
        with pytest.raises(libkvm.UnavailableError, match="signal 9"):
            banner(kernel)
        timer.join()
        kernel.close()


def test_hung_worker_is_ended_and_told_from_a_dead_one(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client:
        hung = client.open(corefile=fixture("qemu/vmcore.kdump").path)
        (worker,) = busy(daemon, 1)
        other = client.open(corefile=fixture("la57/vmcore.kdump").path)
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        failures: list[libkvm.KvmError] = []

        def call() -> None:
            with pytest.raises(libkvm.UnavailableError) as failure:
                banner(hung)
            failures.append(failure.value)

        thread = threading.Thread(target=call)
        thread.start()
        while thread.is_alive():  # others go on meanwhile
            assert banner(other) == b"Linux version"
            time.sleep(0.05)
        thread.join()
        assert failures[0].reason.value == "WORKER_HUNG"
        assert 1.5 < time.monotonic() - began < 4
        eventually(lambda: not Path(f"/proc/{worker}").exists(), 2)
        with client.open(corefile=fixture("qemu/vmcore.kdump").path) as again:
            assert banner(again) == b"Linux version"
        hung.close()
        other.close()


def test_deadline_is_the_clients(daemon: Daemon) -> None:
    """A call gives up when its client's deadline passes; the worker and its other callers are not disturbed."""
    with libkvm.connect(daemon.target) as client:
        kernel = client.open(corefile=fixture("qemu/vmcore.kdump").path)
        (worker,) = busy(daemon, 1)
        os.kill(worker, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(libkvm.DeadlineError):
            kernel.symbols(["init_task"], timeout=0.5)
        assert time.monotonic() - began < 1
        os.kill(worker, signal.SIGCONT)
        assert banner(kernel) == b"Linux version"
        kernel.close()


def test_cancelled_stream_stops_the_work(daemon: Daemon) -> None:
    """A client that leaves a stream of a tebibyte lets the worker go idle, and others get their answers."""
    with libkvm.connect(daemon.target) as client:
        kernel = client.open(corefile=fixture("qemu/vmcore.kdump").path)
        (worker,) = busy(daemon, 1)
        stream = kernel.stream(0, 1 << 40, physical=True)
        next(stream)
        stream.close()
        assert banner(kernel) == b"Linux version"

        def ticks() -> int:
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])

        before = ticks()
        time.sleep(0.5)
        assert ticks() - before <= 2
        kernel.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon that is not root's can't give privileges up")
def test_worker_has_no_privileges(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client, client.open(corefile=fixture("qemu/vmcore.kdump").path):
        (worker,) = busy(daemon, 1)
        status = Path(f"/proc/{worker}/status").read_text()
        fields = dict(re.findall(r"^(\w+):[ \t]*(.*?) *$", status, re.MULTILINE))
        assert all(int(uid) >= 100 for uid in fields["Uid"].split())
        assert all(int(gid) >= 100 for gid in fields["Gid"].split())
        assert fields["Groups"] == ""
        assert {fields[key] for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_replaced_dump_is_another_image(daemon: Daemon, tmp_path: Path) -> None:
    """The same name, another file: a new open gets the new one, the old descriptor keeps the old one."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    (folder / "vmcore").symlink_to(fixture("qemu/vmcore.kdump").path)
    with running_daemon([folder], CONFIG) as running, libkvm.connect(running.target) as client:
        with pytest.raises(libkvm.KvmError, match="symbolic link"):
            client.open(corefile="vmcore")
        (folder / "vmcore").unlink()
        shutil.copy(fixture("qemu/vmcore.kdump").path, folder / "vmcore")
        with client.open(corefile="vmcore") as old:
            (folder / "vmcore").unlink()
            shutil.copy(fixture("la57/vmcore.kdump").path, folder / "vmcore")
            with client.open(corefile="vmcore") as new:
                assert (old.info.paging_levels, new.info.paging_levels) == (4, 5)
