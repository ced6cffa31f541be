"""What the service manager hears, by real sockets of both kinds."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmd.notify import Notifier, feed, idle


@contextmanager
def manager(address: str | bytes) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        sock.settimeout(5)
        yield sock


def heard(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


@pytest.mark.parametrize("abstract", [False, True])
def test_every_message(tmp_path: Path, abstract: bool) -> None:
    name = f"@kvmd-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": name, "HOME": "/"}
    with manager(b"\0" + name[1:].encode() if abstract else name) as sock:
        notifier = Notifier(environ)
        assert environ == {"HOME": "/"}  # no worker inherits it
        assert notifier.ready("serving")
        assert heard(sock) == ["READY=1", "STATUS=serving"]
        before = time.monotonic_ns() // 1000
        assert notifier.reloading()
        reloading, at = heard(sock)
        assert reloading == "RELOADING=1"
        assert before <= int(at.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert notifier.alive()
        assert heard(sock) == ["WATCHDOG=1"]
        assert notifier.status("two\nWATCHDOG=1")
        assert heard(sock) == ["STATUS=two WATCHDOG=1"]  # a text forges no assignment
        assert notifier.stopping()
        assert heard(sock) == ["STOPPING=1", "STATUS=stopping"]


def test_nobody_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({}).ready("serving")
    assert not caplog.records


@pytest.mark.parametrize("address", ["relative", "vsock:2:1"])
def test_a_kind_of_address_that_is_not_known(address: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": address}).ready("serving")
    assert address in caplog.text


def test_a_manager_that_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert not notifier.ready("serving")
    assert "READY=1" in caplog.text


def test_a_manager_that_does_not_listen_is_not_waited_for(tmp_path: Path) -> None:
    with manager(str(tmp_path / "notify")):
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        began = time.monotonic()
        for _ in range(5000):  # net.unix.max_dgram_qlen is far less
            if not notifier.alive():
                break
        else:
            pytest.fail("the queue has no end")
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),  # it is another process's
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "³"}, None),
        ({"WATCHDOG_PID": str(os.getpid())}, None),
        ({}, None),
    ],
)
def test_watchdog_variables(variables: dict[str, str], expected: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/run/none", **variables}
    assert Notifier(environ).watchdog == expected
    assert not environ
    assert Notifier(dict(variables)).watchdog is None  # nobody to feed it to


async def test_fed_only_while_the_check_passes(tmp_path: Path) -> None:
    outcomes: list[object] = ["well", RuntimeError("wrong answer"), OSError("no answer"), "late", "well"]

    async def check() -> None:
        outcome = outcomes.pop(0) if outcomes else "well"
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "late":
            await asyncio.sleep(60)

    with manager(str(tmp_path / "notify")) as sock:
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "200000"})
        began = time.monotonic()
        task = asyncio.ensure_future(feed(notifier, check))
        said = [await asyncio.to_thread(heard, sock) for _ in range(7)]
        task.cancel()
    assert said == [
        ["WATCHDOG=1"],
        ["STATUS=self-check failed: wrong answer"],
        ["STATUS=self-check failed: no answer"],
        ["STATUS=self-check failed: no answer within 0.1 s"],
        ["WATCHDOG=1"],
        ["STATUS=serving"],
        ["WATCHDOG=1"],
    ]
    assert time.monotonic() - began >= 0.5  # each half a watchdog's time after the last


async def test_no_watchdog_no_check() -> None:
    async def check() -> None:
        pytest.fail("nobody wants to know")

    await feed(Notifier({}), check)


async def test_idle_only_after_the_last_has_gone() -> None:
    began, left = time.monotonic(), list[float]()
    await idle(0.2, lambda: time.monotonic() - began < 0.5, lambda: left.append(time.monotonic() - began))
    assert len(left) == 1
    assert 0.6 <= left[0] < 5
