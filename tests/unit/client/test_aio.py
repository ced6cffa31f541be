"""libkvm.aio: the same names, and what only an event loop can do."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import libkvm
import libkvm.aio
from kvmd.errors import Reason
from libkvm.aio import base as twin_base
from libkvm.transports import base
from unit.client.fake import BASE, MEMORY, MIB

ROOT = Path(__file__).parents[3]
C_FACE = {name for name in libkvm.__all__ if name.startswith("kvm_") or name in {"ErrBuf", "Nlist", "SwapInfo"}}
CONSTANTS = {name for name in libkvm.__all__ if name.isupper()}
PAIRS = [(libkvm.Client, libkvm.aio.Client), (libkvm.Kernel, libkvm.aio.Kernel), (base.Transport, twin_base.Transport)]
RENAMED = {"__enter__": "__aenter__", "__exit__": "__aexit__"}
DIRECT = {"reader"}  # of direct reads, which the twin doesn't make
KINDS = {"Iterator": "AsyncIterator", "Generator": "AsyncGenerator"}


def public(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_") or name in {*RENAMED, *RENAMED.values()}}


def function(cls: type, name: str) -> inspect.Signature:
    found = inspect.getattr_static(cls, name)
    return inspect.signature(found.fget if isinstance(found, property) else found)


def asynchronous(annotation: str) -> str:
    kind, bracket, rest = annotation.partition("[")
    return KINDS.get(kind, kind) + bracket + rest


def test_the_names_are_those_of_the_python_face():
    assert set(libkvm.aio.__all__) == set(libkvm.__all__) - C_FACE - CONSTANTS
    for name in set(libkvm.aio.__all__) - {"Client", "Kernel", "connect"}:
        assert getattr(libkvm.aio, name) is getattr(libkvm, name)


@pytest.mark.parametrize(("sync", "twin"), PAIRS)
def test_names_and_signatures_are_the_same(sync, twin):
    both = public(sync) - DIRECT
    assert {RENAMED.get(name, name) for name in both} == public(twin)
    for name in both:
        one, other = function(sync, name), function(twin, RENAMED.get(name, name))
        assert one.parameters == other.parameters
        assert asynchronous(one.return_annotation) == other.return_annotation


def test_connect_has_the_same_signature():
    assert inspect.signature(libkvm.connect) == inspect.signature(libkvm.aio.connect)


def test_the_committed_twin_is_what_the_generator_makes():
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "generate_aio.py", "--check"], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")


async def test_opening_is_awaited_or_entered(target, fake):
    async with libkvm.aio.connect() as client:
        assert fake.seen == []
        async with client.open("core") as kernel:
            assert (await kernel.info).release == "6.1"
        assert kernel.closed
        assert not fake.open
        kernel = await client.open("core")
        assert await kernel.read(BASE, 3) == MEMORY[:3]
    assert client.closed


async def test_a_failed_open_raises(target):
    async with libkvm.aio.connect() as client:
        with pytest.raises(libkvm.SourceNotFoundError):
            await client.open("/nonexistent")
        with pytest.raises(libkvm.SourceNotFoundError):
            async with client.open("/nonexistent"):
                pass


async def test_calls_run_at_the_same_time(target, fake):
    fake.delay["Read"] = 0.3
    async with libkvm.aio.connect() as client, client.open() as kernel:
        began = asyncio.get_running_loop().time()
        results = await asyncio.gather(*(kernel.read(BASE + n, 1) for n in range(5)))
        took = asyncio.get_running_loop().time() - began

    assert results == [MEMORY[n : n + 1] for n in range(5)]
    assert took < 1.2


async def test_cancelling_the_task_cancels_the_call(target, fake):
    fake.delay["Read"] = 1
    async with libkvm.aio.connect() as client, client.open() as kernel:
        task = asyncio.create_task(kernel.read(BASE, 1))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await kernel.read(BASE, 1)
        fake.delay.clear()
        assert await kernel.read(BASE, 1) == b"\0"


async def test_closing_ends_calls_that_wait_with_an_error_of_libkvm(target, fake):
    fake.delay["Read"] = 1
    client = libkvm.aio.connect()
    kernel = await client.open()
    task = asyncio.create_task(kernel.read(BASE, 1))
    await asyncio.sleep(0.2)
    await client.close()
    with pytest.raises(libkvm.CancelledError):
        await task
    with pytest.raises(libkvm.DescriptorError, match="closed; connect again"):
        await client.open()


async def test_leaving_a_walk_ends_it(target, fake):
    async with libkvm.aio.connect() as client, client.open("core") as kernel:
        async for page in kernel.pages():
            assert page.virtual_address == BASE
            break
        assert await asyncio.to_thread(fake.walk_ended.wait, 10)
        chunks = [len(chunk) async for chunk in kernel.stream(BASE, 3 * MIB)]
    assert chunks == [MIB] * 3


def test_a_client_belongs_to_one_event_loop(target):
    client = libkvm.aio.connect()

    async def use() -> None:
        await (await client.open()).close()

    asyncio.run(use())
    with pytest.raises(libkvm.DescriptorError, match="another event loop"):
        asyncio.run(use())
    asyncio.run(client.close())


async def test_the_deadline_is_the_calls(target, fake):
    fake.delay["Read"] = 1
    async with libkvm.aio.connect(timeout=0.2) as client, client.open() as kernel:
        with pytest.raises(libkvm.DeadlineError) as caught:
            await kernel.read(BASE, 1)
    assert caught.value.reason is Reason.DEADLINE


def test_a_bad_target():
    with pytest.raises(libkvm.RequestError):
        libkvm.aio.connect("nonsense")
