"""Connections that come and go, say nothing, or say it slowly: nothing stays, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

import libkvm
from clients import PREFACE, call_headers, connect, connecting_as, frame
from daemon import Daemon, running_daemon
from images import fixture
from procs import descriptors, eventually, nothing_left, resident

QEMU = fixture("qemu/vmcore.kdump")
GREETING = PREFACE + frame(4, 0, 0)
CALL = frame(1, 4, 1, call_headers(b"/kvmd.v1.KvmService/GetInfo"))


@contextlib.contextmanager
def serving(config: str = "") -> Iterator[Daemon]:
    """A daemon that serves an honest client before, and at the end."""
    with running_daemon([QEMU.path.parent], config) as daemon:
        served(daemon)
        yield daemon
        served(daemon)


def served(daemon: Daemon, within: float = 10.0) -> None:
    """An honest client is served, once the daemon has seen to those of its user who came before."""

    def asked() -> bool:
        with (
            contextlib.suppress(libkvm.UnavailableError, libkvm.LimitError),
            libkvm.connect(daemon.target) as client,
            client.open(corefile=QEMU.path) as kernel,
        ):
            return kernel.read(QEMU.truth["kallsyms"]["linux_banner"], 13) == b"Linux version"
        return False

    eventually(asked, within)


def test_a_thousand_connections_opened_and_dropped() -> None:
    """At every stage of a connection's life; the memory after the second thousand is that after the first."""
    half = GREETING + CALL + frame(0, 0, 1, b"\0\0\0\0\5abc")
    stages = (b"", PREFACE[:5], GREETING, GREETING + CALL, half, b"garbage")

    def thousand() -> None:
        for number in range(1000):
            with connect(daemon.target) as sock, contextlib.suppress(OSError):
                sock.sendall(stages[number % len(stages)])

    with serving() as daemon:
        pid = daemon.process.pid
        with nothing_left(pid):
            thousand()
        eventually(lambda: b"".join(daemon.log).count(b'"event": "connect"') > 500, 5)
        before = resident(pid)
        with nothing_left(pid):
            thousand()
        assert resident(pid) - before < 8 << 20
    assert not any(b"Traceback" in line or b"never retrieved" in line for line in daemon.log)


def test_a_thousand_connections_at_once() -> None:
    """More than a user may have: each is served or closed, and what is kept goes with the client."""
    with serving() as daemon:
        pid = daemon.process.pid
        before = descriptors(pid)
        with contextlib.ExitStack() as stack:
            poll = select.poll()
            for _ in range(1000):
                poll.register(stack.enter_context(connect(daemon.target)), 0)
            eventually(lambda: len(poll.poll(0)) >= 1000 - 64 - 2, 10)  # POLLHUP
            assert descriptors(pid) <= before + 4 * 66
        eventually(lambda: descriptors(pid) <= before, 10)


@pytest.fixture(scope="module")
def impatient() -> Iterator[Daemon]:
    """A daemon that cuts whoever doesn't begin within a second."""
    with serving("[limits]\nstall = 1\n") as daemon:
        yield daemon


def dribbled(sock: socket.socket) -> None:
    for byte in GREETING:
        sock.sendall(bytes([byte]))
        time.sleep(0.2)


@pytest.mark.parametrize(
    "begin",
    [
        lambda sock: None,
        lambda sock: sock.sendall(PREFACE[:7]),
        lambda sock: sock.sendall(PREFACE),
        lambda sock: sock.sendall(GREETING[:-1]),
        dribbled,
    ],
    ids=["silence", "half a preface", "no SETTINGS", "all but a byte", "a byte now and then"],
)
def test_slow_greeting(impatient: Daemon, begin: Callable[[socket.socket], None]) -> None:
    """Slowloris: cut after limits.stall, however busily the client seems to send."""
    with nothing_left(impatient.process.pid), connect(impatient.target) as sock:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            begin(sock)
            while sock.recv(1 << 16):
                pass
        assert 0.5 < time.monotonic() - began < 4.5


def test_half_open() -> None:
    """A client that shuts down its sending side has no more to say, whatever it has begun."""
    with serving() as daemon, nothing_left(daemon.process.pid), contextlib.ExitStack() as stack:
        for data in (b"", PREFACE, GREETING, GREETING + CALL):
            sock = stack.enter_context(connect(daemon.target))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while sock.recv(1 << 16):
                    pass


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize(
    "data",
    [b"", PREFACE[:7], GREETING + CALL, GREETING + CALL[:20], GREETING + frame(1, 0, 1, b"")],
    ids=["silence", "half a preface", "calls without request", "half a frame", "headers without end"],
)
def test_all_that_one_user_may_have_is_taken(data: bytes) -> None:
    """One user holds as many connections as there may be and does nothing with them: others have theirs."""
    with serving() as daemon, connecting_as(4002, daemon.target) as peer, contextlib.ExitStack() as stack:
        for _ in range(64):
            sock = stack.enter_context(peer.connect())
            with contextlib.suppress(OSError):
                sock.sendall(data)
        served(daemon, within=5)
