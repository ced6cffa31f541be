"""The pool: who uses which worker, and what becomes of it when callers are cancelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.errors import KvmError, Reason, error
from kvmd.handles.bounds import Bounds
from kvmd.handles.indexes import Indexes
from kvmd.handles.pool import ImageFiles, Pool
from kvmd.images.base import Kind, Progress
from kvmd.worker.protocol import Opened


class FakeWorker:
    """Opens when it is told to; remembers what it was given and whether it was closed."""

    made: list[FakeWorker]
    starting: asyncio.Event

    def __init__(self) -> None:
        self.pid = len(self.made)
        self.failure: KvmError | None = None
        self.protections = ""
        self.fds: list[str] = []
        self.closed = False
        self.when_closed = asyncio.Event()
        self.made.append(self)

    @classmethod
    async def start(cls, bounds: Bounds, run_as: object = None) -> FakeWorker:
        await cls.starting.wait()
        return cls()

    async def open(self, names: object, fds: Sequence[int], find: object, progress: Progress) -> Opened:
        progress(1, 2)
        self.fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
        if "bad" in self.fds[0]:
            raise error(Reason.CORRUPT_IMAGE, "bad")
        return Opened("kernel")

    async def close(self) -> None:
        self.closed = True
        self.when_closed.set()
        self.failure = self.failure or error(Reason.SHUTTING_DOWN, "closed")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    class Workers(FakeWorker):
        made: list[FakeWorker] = []  # noqa: RUF012 - as many as a test makes
        starting = asyncio.Event()

    Workers.starting.set()
    monkeypatch.setattr("kvmd.handles.pool.Worker", Workers)
    return Workers


@pytest.fixture
async def pool(workers: type[FakeWorker]) -> AsyncIterator[Pool]:
    pool = Pool(Quotas(Limits(workers=2))["workers"], Bounds(1 << 30, 60, 5), linger=60)
    yield pool
    await pool.close()
    assert all(worker.closed for worker in workers.made)


def files(path: Any) -> ImageFiles:
    fd = os.open(path, os.O_RDONLY | os.O_CREAT)
    return ImageFiles(Kind.DUMP, (("core", SimpleNamespace(fd=fd, path=str(path), stat=os.fstat(fd))),))


def close(opened: ImageFiles) -> None:
    for fd in opened.fds:
        os.close(fd)


async def used(pool: Pool, path: Any) -> Any:
    """As sessions do: the files are closed when acquire comes back, however it does."""
    opened = files(path)
    try:
        return await pool.acquire(opened, "uid:1")
    finally:
        close(opened)


async def test_all_who_wait_hear_of_progress_and_nobody_after(pool: Pool, tmp_path: Any) -> None:
    heard: list[tuple[str, int, int]] = []

    async def hearing(name: str) -> Any:
        opened = files(tmp_path / "image")
        try:
            return await pool.acquire(opened, "uid:1", lambda done, of: heard.append((name, done, of)))
        finally:
            close(opened)

    first, second = await asyncio.gather(hearing("first"), hearing("second"))
    assert first is second
    assert sorted(heard) == [("first", 1, 2), ("second", 1, 2)]
    assert first.listeners == []
    await hearing("third")  # it is open
    assert len(heard) == 2


async def test_files_stay_open_as_long_as_the_worker_needs_them(
    pool: Pool, workers: type[FakeWorker], tmp_path: Any
) -> None:
    """A caller cancelled twice, by its deadline and by grpc, while the worker starts: else the number of its file
    would be somebody else's file by the time it is sent."""
    workers.starting.clear()
    caller = asyncio.ensure_future(used(pool, tmp_path / "image"))
    for _ in range(2):
        await asyncio.sleep(0.01)
        caller.cancel()
    await asyncio.sleep(0.01)
    other = os.open(tmp_path / "secret", os.O_RDONLY | os.O_CREAT)
    workers.starting.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    os.close(other)
    assert workers.made[0].fds == [str(tmp_path / "image")]


async def test_first_of_two_callers_is_cancelled(pool: Pool, workers: type[FakeWorker], tmp_path: Any) -> None:
    workers.starting.clear()
    first, second = (asyncio.ensure_future(used(pool, tmp_path / "image")) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    workers.starting.set()
    entry = await second
    with pytest.raises(asyncio.CancelledError):
        await first
    assert entry.users == 1
    assert not entry.worker.closed
    pool.release(entry)
    assert entry.users == 0
    assert entry.retiring is not None


async def test_idle_image_makes_room_and_a_used_one_does_not(
    pool: Pool, workers: type[FakeWorker], tmp_path: Any
) -> None:
    """Images that merely linger keep nobody from opening another."""
    one, two = [await used(pool, tmp_path / name) for name in ("one", "two")]
    with pytest.raises(KvmError) as failure:
        await used(pool, tmp_path / "three")
    assert failure.value.reason is Reason.WORKER_LIMIT
    pool.release(two)
    pool.release(one)
    three = await used(pool, tmp_path / "three")
    await asyncio.sleep(0)
    assert two.worker.closed
    assert not one.worker.closed
    assert await used(pool, tmp_path / "one") is one
    with pytest.raises(KvmError):
        await used(pool, tmp_path / "two")
    pool.release(one)
    pool.release(three)


async def test_entry_replaced_while_the_older_one_is_released(
    pool: Pool, workers: type[FakeWorker], tmp_path: Any
) -> None:
    """The worker died; somebody opens the image again; then the older descriptor goes."""
    old = await used(pool, tmp_path / "image")
    old.worker.failure = error(Reason.WORKER_DIED, "died")
    new = await used(pool, tmp_path / "image")
    assert new is not old
    pool.release(old)
    await asyncio.sleep(0)
    assert old.worker.closed
    assert not new.worker.closed
    assert await used(pool, tmp_path / "image") is new
    assert new.users == 2
    pool.release(new)
    pool.release(new)


async def test_worker_that_dies_while_it_lingers(pool: Pool, workers: type[FakeWorker], tmp_path: Any) -> None:
    old = await used(pool, tmp_path / "image")
    pool.release(old)
    old.worker.failure = error(Reason.WORKER_DIED, "died")
    new = await used(pool, tmp_path / "image")
    assert (old.users, new.users) == (0, 1)
    assert new is not old
    pool.release(new)


async def test_open_that_fails_leaves_nothing(pool: Pool, workers: type[FakeWorker], tmp_path: Any) -> None:
    for _ in range(5):
        results = await asyncio.gather(*(used(pool, tmp_path / "bad") for _ in range(3)), return_exceptions=True)
        assert [result.reason for result in results] == [Reason.CORRUPT_IMAGE] * 3
    assert pool.entries() == []
    assert all(worker.closed for worker in workers.made)


async def test_nothing_is_opened_once_the_pool_is_closed(pool: Pool, workers: type[FakeWorker], tmp_path: Any) -> None:
    await pool.close()
    with pytest.raises(KvmError) as failure:
        await used(pool, tmp_path / "image")
    assert failure.value.reason is Reason.SHUTTING_DOWN
    assert not workers.made


async def test_an_index_that_is_being_made_holds_up_no_end(workers: type[FakeWorker], tmp_path: Any) -> None:
    """A worker that never says the last of what it has read; close() comes long before it is given up."""
    asked = asyncio.Event()

    async def endless(self: object, method: str, request: bytes) -> AsyncIterator[bytes]:
        asked.set()
        while True:
            await asyncio.sleep(0.01)
            yield b""

    async def opened(self: object, *_: object) -> Opened:
        return Opened("kernel", build_id="a1" * 20)

    workers.stream = endless  # type: ignore[attr-defined]
    workers.open = opened  # type: ignore[assignment, method-assign]
    indexes = Indexes(str(tmp_path / "cache"), 1 << 20)
    pool = Pool(Quotas(Limits())["workers"], Bounds(1 << 30, 60, 60), linger=0, indexes=indexes)
    given = [files(tmp_path / name) for name in ("one", "other")]
    entries = [await pool.acquire(each, "uid:0") for each in given]
    for entry in entries:
        pool.release(entry)
    await asyncio.wait_for(asked.wait(), 5)
    await asyncio.wait_for(workers.made[-1].when_closed.wait(), 5)  # one is made at a time; the other just ends
    assert [worker.closed for worker in workers.made] == [False, True]
    await asyncio.wait_for(pool.close(), 5)
    assert all(worker.closed for worker in workers.made)
    assert not list((tmp_path / "cache").iterdir())
    for each in given:
        close(each)
