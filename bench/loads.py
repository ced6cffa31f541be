"""Rows about many: clients, descriptors, and a dump of many pages."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import libkvm
from bench.bulk import HIGH, STREAM
from bench.measure import in_turn
from bench.rows import MIB, Row, Subject

CLIENTS = 32
_SAMPLES = 3000


def _resident(pid: int) -> int:
    """A process's memory in bytes."""
    [kibibytes] = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text("utf-8"))
    return int(kibibytes) << 10


def _p99(read: Callable[[int, int], object], addresses: list[int]) -> float:
    times: list[float] = []
    for n in range(_SAMPLES):
        began = time.perf_counter()
        read(addresses[n % len(addresses)], 8)
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times, n=100)[98]


@contextlib.contextmanager
def streaming(target: str, path: str) -> Iterator[None]:
    """As many other processes, each reading 1 MiB after the other."""
    pids = []
    for _ in range(CLIENTS):
        if (pid := os.fork()) == 0:
            with libkvm.connect(target) as client, client.open(path) as kernel:
                while True:
                    for at in range(0, STREAM, MIB):
                        kernel.read(HIGH + at, MIB, physical=True)
        pids.append(pid)
    time.sleep(8)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def crowd(subject: Subject, _rounds: int) -> Row:
    """The 99th percentile of small reads that go to the worker, while others stream from it."""
    path, target = str(subject.path), subject.client.target
    subject.close()
    addresses = [HIGH + n * 4096 for n in range(2000)]

    def small() -> float:
        with libkvm.connect(target) as client, client.open(path) as kernel:
            read = kernel.read
            return _p99(lambda address, length: read(address, length, physical=True), addresses)

    unloaded = small()
    with streaming(target, path):
        loaded = small()
    what = f"p99 of 8-byte reads, {CLIENTS} clients streaming from the same worker"
    return Row(what, "the same, unloaded", loaded, unloaded, 10)


def opening(large: Subject, small: str, rounds: int) -> Row:
    """Open a dump with 64 GiB of memory in it, and one with 512 MiB; neither has a worker yet."""
    target, path = large.client.target, str(large.path)
    large.close()

    def opened(name: str) -> float:
        time.sleep(2.5)  # until the last round's worker is gone, and the next stands ready
        with libkvm.connect(target) as client:
            began = time.perf_counter()
            with client.open(name) as kernel:
                took = time.perf_counter() - began
                assert kernel.info.release
            return took

    first, second = in_turn(lambda: opened(path), lambda: opened(small), rounds)
    return Row("open of a dump of 64 GiB, sparse", "open of one of 512 MiB", first, second, 2, unit="an open")


def descriptors(subject: Subject, pid: int, _rounds: int) -> Row:
    """What the daemon takes for one more descriptor of an open image."""
    more, path = 150, str(subject.path)
    warm = [subject.client.open(path) for _ in range(50)]
    before = _resident(pid)
    opened = [subject.client.open(path) for _ in range(more)]
    each = (_resident(pid) - before) / more
    for kernel in (*warm, *opened):
        kernel.close()
    return Row("daemon memory per further descriptor", "the bound", each, 16 << 10, 1, unit="bytes")


def idlers(subject: Subject, pid: int, _rounds: int) -> Row:
    """What the daemon takes for a client that has a descriptor and does nothing."""
    more, path, target = 40, str(subject.path), subject.client.target

    def idle() -> tuple[libkvm.Client, libkvm.Kernel]:
        client = libkvm.connect(target)
        return client, client.open(path)

    first = [idle() for _ in range(10)]
    before = _resident(pid)
    rest = [idle() for _ in range(more)]
    each = (_resident(pid) - before) / more
    for client, kernel in (*first, *rest):
        kernel.close()
        client.close()
    return Row("daemon memory per idle client", "the bound", each, 256 << 10, 1, unit="bytes")
