"""How an index comes to be made: nothing that a taken-over worker does holds anything up, or gets into it unhashed."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable

import pytest

from btf import Builder
from kvmd.errors import KvmError, Reason
from kvmd.handles import learning
from kvmd.handles.bounds import Bounds
from kvmd.handles.learning import learn
from kvmd.images.linux.index import inputs, make
from kvmd.images.linux.kallsyms import RawKallsyms

BOUNDS = Bounds(1 << 30, 60, 5.0)


class Says:
    """A worker that says what it likes of what it has read."""

    def __init__(self, pieces: Callable[[], AsyncGenerator[bytes]]) -> None:
        self._pieces = pieces
        self.closed = False

    async def stream(self, method: str, request: bytes) -> AsyncGenerator[bytes]:
        assert (method, request) == ("IndexInputs", b"")
        try:
            async for piece in self._pieces():
                yield piece
        finally:
            self.closed = True


def says(*pieces: bytes) -> Says:
    async def given() -> AsyncGenerator[bytes]:
        for piece in pieces:
            yield piece

    return Says(given)


def blob() -> bytes:
    b = Builder()
    b.compound("one", 4, [("member", b.integer("int", 4), 0)])
    return b.bytes()


async def test_a_new_worker_makes_what_is_made_here() -> None:
    tables = RawKallsyms(bytes(8), b"\2aa\2ab\0\0", b"\0" * 512, bytes(512))
    given = inputs(tables, blob())
    assert await learn(says(given[:7], given[7:]), BOUNDS) == make(memoryview(given))  # type: ignore[arg-type]


async def test_nothing_was_missed() -> None:
    assert await learn(says(), BOUNDS) is None  # type: ignore[arg-type]
    assert await learn(says(b"", b""), BOUNDS) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [b"x", bytes(4096), os.urandom(4096), b"\1\0\0\0btf" + bytes(60)])
async def test_nonsense_ends_with_an_error_or_fits_nothing(given: bytes) -> None:
    try:
        made = await learn(says(given), BOUNDS)  # type: ignore[arg-type]
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
    else:
        assert made is not None
        assert b"digest" not in made


async def test_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "MOST_INPUTS", 1000)
    worker = says(bytes(600), bytes(600), bytes(600))
    with pytest.raises(KvmError, match="more than 1000 bytes"):
        await learn(worker, BOUNDS)  # type: ignore[arg-type]
    assert worker.closed


async def test_a_worker_that_never_ends_is_left() -> None:
    async def endless() -> AsyncGenerator[bytes]:
        while True:
            await asyncio.sleep(0.01)
            yield b""

    worker, began = Says(endless), time.monotonic()
    with pytest.raises(TimeoutError):
        await learn(worker, Bounds(1 << 30, 60, 0.3))  # type: ignore[arg-type]
    assert time.monotonic() - began < 3
    assert worker.closed
