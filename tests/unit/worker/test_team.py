"""Pages that a worker and its helpers unpack together: real processes, and helpers that were taken over."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from kvmd.images.base import Unpack
from kvmd.images.linux.kdumpcodecs import unpack
from kvmd.worker import helpers, sandbox
from kvmd.worker.helpers import PIECE, Seat
from kvmd.worker.sandbox import SandboxLimits
from kvmd.worker.team import Team

PAGE = 4096
ZLIB = 1
PAGES = [random.Random(n).randbytes(700) + bytes(PAGE - 700) for n in range(200)]
PACKED = [zlib.compress(page, 1) for page in PAGES]
Answer = Callable[[bytes, memoryview], bytes | None]


def not_here(_codec: int, _size: int, packed: Sequence[bytes], into: memoryview) -> None:
    """What the worker itself unpacks, so that a test can tell: the same pages, in other letters."""
    unpack(ZLIB, PAGE, packed, into)
    into[:] = bytes(into).swapcase()


def taken(unpacked: Unpack, packed: Sequence[bytes] = PACKED, size: int = PAGE) -> bytes:
    """Pages as they are unpacked, into a buffer that had something else in it."""
    into = bytearray(b"\xa5" * (len(packed) * size))
    unpacked(ZLIB, size, packed, memoryview(into))
    return bytes(into)


@contextmanager
def working(number: int, work: Unpack = unpack) -> Iterator[list[int]]:
    """Processes that help, and their ids, which are as their seats."""
    with pytest.MonkeyPatch.context() as patched:
        # All of a sandbox that matters here: to have no other's end of a socket.
        patched.setattr(helpers, "confine", lambda limits: sandbox._close_others(limits.keep or ()))
        pids: list[int] = []
        fork = os.fork

        def noted() -> int:
            pids.append(fork())
            return pids[-1]

        patched.setattr(os, "fork", noted)
        handler = signal.getsignal(signal.SIGCHLD)
        made.extend(helpers.seats(number))
        helpers.start(made, SandboxLimits(), work)
        signal.signal(signal.SIGCHLD, handler)
    try:
        yield pids
    finally:
        for seat in made:
            seat.helper.close()
        made.clear()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


made: list[Seat] = []


def team(here: Unpack = unpack) -> Team:
    return Team(here, [seat.helper for seat in made])


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 64, 199])
def test_all_pages_in_their_order(number: int, count: int) -> None:
    with working(number):
        unpacked = team().take()
        for _ in range(5):
            assert taken(unpacked, PACKED[:count]) == b"".join(PAGES[:count])


def test_helpers_do_some_of_it() -> None:
    """Not less than nothing: how much depends on how many processors are free."""

    def slow(codec: int, size: int, packed: Sequence[bytes], into: memoryview) -> None:
        threading.Event().wait(0.02)
        not_here(codec, size, packed, into)

    with working(2):
        unpacked = team(slow).take()
        assert taken(unpacked) == b"".join(PAGES).swapcase()  # alone first, to compare
        pages = taken(unpacked)
    theirs = [n for n, page in enumerate(PAGES) if pages[n * PAGE : (n + 1) * PAGE] == page]
    rest = [n for n, page in enumerate(PAGES) if pages[n * PAGE : (n + 1) * PAGE] == page.swapcase()]
    assert sorted(theirs + rest) == list(range(200))
    assert len(theirs) >= 64


@pytest.mark.parametrize("bad", [b"", b"rubbish", PACKED[0][:-5]])
def test_pages_that_cannot_be_unpacked(bad: bytes) -> None:
    """An error, wherever they are, and the next read is none the worse."""
    with working(1):
        unpacked = team().take()
        for at in (0, 20, 100, 199):
            packed = [*PACKED[:at], bad, *PACKED[at + 1 :]]
            with pytest.raises(ValueError):  # noqa: PT011 - any
                taken(unpacked, packed)
            assert taken(unpacked) == b"".join(PAGES)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_helper_is_lost(how: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with working(2) as pids:
        unpacked = team().take()
        assert taken(unpacked) == b"".join(PAGES)
        for pid in pids:
            killer = threading.Timer(0.002, os.kill, (pid, how))
            killer.start()
            for _ in range(20):
                assert taken(unpacked) == b"".join(PAGES)
            killer.join()
    assert capfd.readouterr().err.count("goes on without a helper") == (2 if how is signal.SIGKILL else 0)


def test_who_is_slower_is_tried_now_and_then() -> None:
    """And is not for good: a processor may be free again."""
    asked: list[bytes] = []

    def late(request: bytes, _window: memoryview) -> bytes:
        asked.append(request)
        threading.Event().wait(0.05)
        return struct.pack("<II", struct.unpack_from("<I", request)[0], 0)

    with taken_over(late):
        unpacked = team().take()
        for _ in range(64):
            assert taken(unpacked) == b"".join(PAGES)
        assert 1 <= len(asked) <= 64 // 4


def test_who_is_quicker_is_asked() -> None:
    calls = 0

    def counted(codec: int, size: int, packed: Sequence[bytes], into: memoryview) -> None:
        nonlocal calls
        calls += 1
        threading.Event().wait(0.01 * len(packed) / 16)
        unpack(codec, size, packed, into)

    with working(3):
        unpacked = team(counted).take()
        for _ in range(8):
            assert taken(unpacked) == b"".join(PAGES)
    # Alone it would be one call for each run; together some pieces are unpacked here, and not all of 13.
    assert 8 < calls < 8 * 10


def test_no_team_is_needed(capfd: pytest.CaptureFixture[str]) -> None:
    with working(1) as [pid]:
        alone = team()
        assert not alone.wanted
        alone.close()
        assert taken(alone.take()) == b"".join(PAGES)
        assert alone.wanted
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) is not None
    assert not capfd.readouterr().err


@contextmanager
def taken_over(answer: Answer) -> Iterator[None]:
    """One helper, which says what a test wants."""
    [seat] = helpers.seats(1)
    made.append(seat)

    def run() -> None:
        with suppress(OSError):
            while request := seat.link.recv(1 << 16):
                if (said := answer(request, seat.window)) is not None:
                    seat.link.send(said)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        seat.helper.close()
        seat.link.shutdown(socket.SHUT_RDWR)
        thread.join()
        seat.link.close()
        made.clear()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=20))
def test_whatever_it_says(capfd: pytest.CaptureFixture[str], said: bytes) -> None:
    """All that it can spoil is what it was asked for; it is asked no more if it says what makes no sense."""
    assume(said[4:] != struct.pack("<I", PIECE))  # which is what it was asked for
    with taken_over(lambda _request, _window: said):
        unpacked = team().take()
        for _ in range(3):
            assert taken(unpacked) == b"".join(PAGES)


@pytest.mark.parametrize("length", [0, 1, PIECE - 1, PIECE + 1, 1 << 31])
def test_another_length(length: int) -> None:
    """The pages are then unpacked by the worker, whatever the helper has put in their place."""

    def lies(request: bytes, window: memoryview) -> bytes:
        window[:] = b"\xee" * len(window)
        return struct.pack("<II", struct.unpack_from("<I", request)[0], length)

    with taken_over(lies):
        assert taken(team().take()) == b"".join(PAGES)


def test_an_answer_to_what_was_not_asked(capfd: pytest.CaptureFixture[str]) -> None:
    with taken_over(lambda request, _window: struct.pack("<II", struct.unpack_from("<I", request)[0] + 7, PIECE)):
        unpacked = team().take()
        for _ in range(4):
            assert taken(unpacked) == b"".join(PAGES)
    assert "what it was not asked" in capfd.readouterr().err


@pytest.mark.parametrize("size", [4096, 8192, 16384, 32768, 65536])
def test_large_pages(size: int) -> None:
    pages = [random.Random(n).randbytes(900) + bytes(size - 900) for n in range(40)]
    with working(1):
        assert taken(team().take(), [zlib.compress(page) for page in pages], size) == b"".join(pages)


def test_pages_that_are_larger_when_packed_fit() -> None:
    """Nothing that is packed is longer than a page (kdumppages.py), and so many fit."""
    pages = [random.Random(n).randbytes(PAGE - 20) for n in range(64)]
    with working(1):
        packed = [zlib.compress(page, 0) for page in pages]
        assert {len(each) for each in packed} == {PAGE - 9}
        assert taken(team().take(), packed, PAGE - 20) == b"".join(pages)
