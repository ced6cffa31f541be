"""Work that is not left half done, however often its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from kvmd.tasks import uncancelled


async def test_cancelled_twice_comes_back_when_the_work_is_done() -> None:
    """A passed deadline is two cancellations: asyncio's timeout's, and grpc's of the call."""
    finish, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await finish.wait()
        done.set()

    caller = asyncio.ensure_future(uncancelled(work()))
    for _ in range(3):
        await asyncio.sleep(0.01)
        caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert done.is_set()


async def test_nobody_complains_of_a_failure_whose_caller_is_gone() -> None:
    """asyncio would log it with its traceback, and a traceback holds names that clients chose."""
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))

    async def work() -> None:
        await asyncio.sleep(0.02)
        raise ValueError("name of a file")

    caller = asyncio.ensure_future(uncancelled(work()))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    del caller
    await asyncio.sleep(0)
    assert not said


async def test_result_and_failure_are_passed_on() -> None:
    assert await uncancelled(asyncio.sleep(0, "done")) == "done"

    async def work() -> None:
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        await uncancelled(work())
