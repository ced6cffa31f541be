"""Reading ahead: never another byte than without, and few calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libkvm.errors import KvmError, Reason, error
from libkvm.fast.ahead import FIRST, MOST, Ahead
from libkvm.records import RangeResult

SIZE = 1 << 20
DATA = bytes(range(256)) * (SIZE // 256)


class Remote:
    """Memory from 0 to 1 MiB on another host; a byte that can't be read."""

    def __init__(self, hole: int = SIZE) -> None:
        self.hole = hole
        self.calls: list[int] = []
        self.failure: KvmError | None = None

    def readv(self, ranges: Sequence[tuple[int, int]], physical: bool, seconds: float) -> list[RangeResult]:
        self.calls.append(sum(length for _, length in ranges))
        if self.failure is not None:
            raise self.failure
        return [self._one(address, length) for address, length in ranges]

    def _one(self, address: int, length: int) -> RangeResult:
        there = max(min(self.hole, SIZE) - address, 0)
        fault = error(Reason.NOT_MAPPED, "hole") if there < length else None
        return RangeResult(DATA[address : address + min(there, length)], fault)


def test_many_small_reads_are_few_calls() -> None:
    remote = Remote()
    ahead = Ahead(remote.readv)
    found = [ahead.read(False, at, 256, 1) for at in range(0, SIZE, 256)]
    assert found[:2] == [None, None]
    assert b"".join(piece or b"" for piece in found) == DATA[512:]
    assert remote.calls == [FIRST, 2 * FIRST, 4 * FIRST, 8 * FIRST, 16 * FIRST]


def test_a_window_has_an_end() -> None:
    calls: list[int] = []

    def readv(ranges: Sequence[tuple[int, int]], physical: bool, seconds: float) -> list[RangeResult]:
        assert all(length <= 1 << 20 for _, length in ranges)
        calls.append(sum(length for _, length in ranges))
        return [RangeResult(bytes(length), None) for _, length in ranges]

    ahead = Ahead(readv)
    for at in range(0, 64 << 20, 1 << 16):
        ahead.read(False, at, 1 << 16, 1)
    assert max(calls) == MOST
    assert len(calls) < 24


def test_jumps_and_other_spaces_are_not_read_ahead() -> None:
    remote = Remote()
    ahead = Ahead(remote.readv)
    for at in range(0, SIZE, 4096):
        assert ahead.read(False, SIZE - 4096 - at, 4096, 1) is None
        assert ahead.read(True, at, 64, 1) is None
    assert remote.calls == []


def test_what_is_before_a_hole_is_read_and_the_hole_is_asked_for() -> None:
    remote = Remote(hole=10_000)
    ahead = Ahead(remote.readv)
    found = [ahead.read(False, at, 1000, 1) for at in range(0, 14_000, 1000)]
    assert [piece is not None for piece in found] == [False] * 2 + [True] * 8 + [False] * 4
    remote.failure = error(Reason.UNREACHABLE, "gone")
    assert ahead.read(False, 14_000, 1000, 1) is None


def test_nothing_is_served_after_a_close_nor_of_no_length() -> None:
    remote = Remote()
    ahead = Ahead(remote.readv)
    for at in range(0, 4096, 256):
        ahead.read(False, at, 256, 1)
    assert ahead.read(False, 4096, 0, 1) is None
    assert ahead.read(False, 4096, 256, 1) is not None
    ahead.drop()
    assert ahead.read(False, 4352, 256, 1) is None


def test_the_end_of_the_address_space() -> None:
    def readv(ranges: Sequence[tuple[int, int]], physical: bool, seconds: float) -> list[RangeResult]:
        assert all(at + length <= 1 << 64 for at, length in ranges)
        return [RangeResult(bytes(length), None) for _, length in ranges]

    ahead = Ahead(readv)
    top = 1 << 64
    found = [ahead.read(False, at, 4096, 1) for at in range(top - 4 * 4096, top, 4096)]
    assert found[2:] == [bytes(4096)] * 2
    assert ahead.read(False, top, 4096, 1) is None


def test_several_threads_at_once_get_nothing_wrong() -> None:
    remote = Remote()
    ahead = Ahead(remote.readv)
    wrong: list[int] = []

    def reader(start: int) -> None:
        for at in range(start, SIZE, 512):
            data = ahead.read(False, at, 512, 1)
            if data is not None and data != DATA[at : at + 512]:
                wrong.append(at)

    threads = [threading.Thread(target=reader, args=(n * 8192,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(
    st.integers(0, SIZE),
    st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, SIZE), st.integers(0, 200_000)), max_size=60),
)
@settings(deadline=None)
def test_any_reads_are_right_or_left_to_others(hole: int, steps: list[tuple[bool, bool, int, int]]) -> None:
    ahead, at = Ahead(Remote(hole).readv), 0
    for on, physical, where, length in steps:
        at = at if on else where
        data = ahead.read(physical and not on, at, length, 1)
        assert data is None or (data == DATA[at : at + length] and at + length <= hole)
        at += length


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) + 1])
def test_longer_reads_are_streamed_by_others(length: int) -> None:
    remote = Remote()
    ahead = Ahead(remote.readv)
    for n in range(4):
        ahead.read(False, n * length, length, 1)
    assert bool(remote.calls) == (length <= 1 << 20)
