"""Floods by one user, over as many connections as 16: they are cut or slowed down, and another user hardly notices."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import libkvm
from attack.flood import KINDS
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.config import Limits
from procs import nothing_left, resident

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

QEMU = fixture("qemu/vmcore.kdump")
HERE = Path(__file__).parent
CONNECTIONS, SECONDS = 16, 1.5
CUT = {"empty CONTINUATION", "empty DATA", "garbage"}
"""What grpc takes for an attack by itself, at once."""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent]) as running:
        yield running
    assert not any(b"Traceback" in line for line in running.log)


@pytest.fixture(scope="module")
def kernel(daemon: Daemon) -> Iterator[libkvm.Kernel]:
    with libkvm.connect(daemon.target) as client, client.open(corefile=QEMU.path) as kernel:
        yield kernel


def waits(kernel: libkvm.Kernel, seconds: float) -> list[float]:
    """How long small reads take, one after the other for some time."""
    address, took, end = QEMU.truth["kallsyms"]["linux_banner"], list[float](), time.monotonic() + seconds
    while time.monotonic() < end or len(took) < 20:
        began = time.monotonic()
        assert kernel.read(address, 13) == b"Linux version"
        took.append(time.monotonic() - began)
    return sorted(took)


@pytest.mark.parametrize("kind", KINDS)
def test_flood(daemon: Daemon, kernel: libkvm.Kernel, kind: str) -> None:
    path, env = daemon.target.removeprefix("unix:"), {**os.environ, "PYTHONPATH": str(HERE.parent)}
    waits(kernel, 0)
    before = resident(daemon.process.pid)
    command = [sys.executable, HERE / "flood.py", path, "4002", kind, str(CONNECTIONS), str(SECONDS)]
    with (
        nothing_left(daemon.process.pid),
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process,
    ):
        assert process.stdout.readline() == "begun\n"
        took = waits(kernel, SECONDS - 0.3)
        grown = resident(daemon.process.pid) - before
        left, sent = map(int, process.stdout.read().split())
    median, p99 = statistics.median(took), took[len(took) * 99 // 100]
    sys.stdout.write(f"{kind}: {left} left, {sent >> 10} KiB; another: {median * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms\n")
    assert median < 0.05
    assert grown < 200 << 20
    if kind in CUT:
        assert left == 0
    else:  # what lies in sockets, and half a second for a slow machine's timers
        assert sent < Limits().received_bytes_per_second_per_uid * (SECONDS + 0.5) + (CONNECTIONS << 19)
