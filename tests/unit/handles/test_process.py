"""A worker process that is not what it should be: the daemon's end gives it up, says why, and keeps nothing of it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from kvmd.errors import KvmError, Reason
from kvmd.handles import process
from kvmd.handles.bounds import Bounds
from kvmd.handles.process import Worker
from kvmd.images.base import Kind
from kvmd.worker.protocol import OpenFrame

PRELUDE = """
import os, signal, socket, struct, sys, time
from kvmd.v1 import error_pb2
sock = socket.socket(fileno=int(sys.argv[1]))
def send(kind, payload=b""):
    sock.sendall(struct.pack("<II", kind, len(payload)) + payload)
def receive():
    head = sock.recv(8, socket.MSG_WAITALL)
    if len(head) < 8:
        sys.exit(0)
    kind, length = struct.unpack("<II", head)
    return kind, sock.recv(length, socket.MSG_WAITALL) if length else b""
def fail(reason, message="why", **metadata):
    send(9, error_pb2.Error(reason=reason, message=message, metadata=metadata).SerializeToString())
READY, RESULT, ITEM, END, ERROR = range(5, 10)
PROGRESS = 14
"""
NAMES = OpenFrame(Kind.DUMP, ())
Start = Callable[[str], Awaitable[Worker]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Start a worker that runs the code given."""
    started: list[Worker] = []

    async def begin(code: str, patience: float = 2) -> Worker:
        async def spawn(arguments: object) -> tuple[asyncio.subprocess.Process, socket.socket]:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                command = [sys.executable, "-c", PRELUDE + code, str(theirs.fileno())]
                pipe = asyncio.subprocess.PIPE
                return await asyncio.create_subprocess_exec(*command, pass_fds=[theirs.fileno()], stderr=pipe), ours

        monkeypatch.setattr(process, "_spawn", spawn)
        started.append(await Worker.start(Bounds(1 << 30, 60, patience)))
        return started[-1]

    yield begin
    for worker in started:
        await worker.close()


async def reason(call: Awaitable[object]) -> Reason:
    with pytest.raises(KvmError) as failure:
        await call
    return failure.value.reason


LIES = {
    "garbage": "sock.sendall(os.urandom(1 << 16))",
    "unknown kind": "send(77, b'x')",
    "a request": "send(2, b'x')",
    "more than may be": "sock.sendall(struct.pack('<II', RESULT, 25 << 20))",
    "no end": "sock.sendall(struct.pack('<II', RESULT, 0xffffffff))",
    "large error": "fail('NOT_MAPPED', 'x' * 70000)",
    "no error": "send(ERROR, b'\\xff\\xff\\xff')",
    "unknown reason": "fail('WHATEVER')",
    "the daemon's reason": "fail('NO_SUCH_DESCRIPTOR')",
    "progress of a call": "send(PROGRESS, bytes(16))",
}


@pytest.mark.parametrize("code", LIES.values(), ids=LIES)
async def test_answer_that_breaks_the_protocol(start: Start, code: str) -> None:
    """The worker is ended, and all calls from then on say so."""
    worker = await start(f"send(READY)\nreceive()\n{code}\ntime.sleep(60)")
    began = time.monotonic()
    assert await reason(worker.call("Read", b"")) is Reason.WORKER_DIED
    assert time.monotonic() - began < 1
    assert await reason(worker.call("Read", b"")) is Reason.WORKER_DIED
    assert worker.failure is not None
    assert worker._exit.done()


async def test_worker_can_not_deny_an_open(start: Start) -> None:
    """Only the policy denies: it would be on the audit record."""
    worker = await start("send(READY)\nreceive()\nfail('POLICY_DENIED', rule='forged', verb='read')\ntime.sleep(60)")
    assert await reason(worker.open(NAMES, [])) is Reason.WORKER_DIED


async def test_name_of_a_kernel_is_text_whatever_it_is(start: Start) -> None:
    worker = await start("send(READY)\nreceive()\nsend(RESULT, b'\\xff' * 100000)\nreceive()")
    opened = await worker.open(NAMES, [])
    assert len(opened.kernel_name) <= 4096
    assert not opened.foreign
    opened.kernel_name.encode()


async def test_an_open_that_tells_of_progress_may_take_longer(start: Start) -> None:
    code = "for i in range(8):\n    send(PROGRESS, struct.pack('<QQ', i, 8))\n    time.sleep(0.25)\n"
    worker = await start(f"send(READY)\nreceive()\n{code}send(RESULT, b'\\0name')\nreceive()", 1)
    heard: list[tuple[int, int]] = []
    opened = await worker.open(NAMES, [], progress=lambda done, of: heard.append((done, of)))
    assert (opened.kernel_name, heard) == ("name", [(i, 8) for i in range(8)])


async def test_progress_that_ends_is_a_hang(start: Start) -> None:
    worker = await start("send(READY)\nreceive()\nsend(PROGRESS, bytes(16))\ntime.sleep(60)", 0.5)
    began = time.monotonic()
    assert await reason(worker.open(NAMES, [], progress=lambda done, of: None)) is Reason.WORKER_HUNG
    assert time.monotonic() - began < 2


async def test_a_flood_of_progress_waits_and_does_not_last(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "LONGEST_OPEN", 1.0)
    worker = await start("send(READY)\nreceive()\nwhile True:\n    send(PROGRESS, bytes(16))", 0.7)
    heard: list[int] = []
    began = time.monotonic()
    assert await reason(worker.open(NAMES, [], progress=lambda done, of: heard.append(done))) is Reason.WORKER_HUNG
    assert time.monotonic() - began < 3
    assert 0 < len(heard) < 20


@pytest.mark.parametrize("size", [0, 15, 17])
async def test_progress_of_another_size(start: Start, size: int) -> None:
    worker = await start(f"send(READY)\nreceive()\nsend(PROGRESS, bytes({size}))\ntime.sleep(60)")
    assert await reason(worker.open(NAMES, [], progress=lambda done, of: None)) is Reason.WORKER_DIED


async def test_signal_without_a_name(start: Start) -> None:
    """Most real-time signals have none; the exit is noticed all the same."""
    worker = await start("send(READY)\nreceive()\nos.kill(os.getpid(), 40)")
    with pytest.raises(KvmError, match="signal 40") as failure:
        await worker.call("Read", b"")
    assert failure.value.reason is Reason.WORKER_DIED


async def test_drops_are_not_an_answer(start: Start) -> None:
    """One byte now and then does not buy time."""
    drip = "sock.sendall(struct.pack('<II', RESULT, 1000))\nwhile True:\n    sock.sendall(b'x')\n    time.sleep(0.1)"
    worker = await start(f"send(READY)\nreceive()\n{drip}")
    worker._patience = 0.5
    began = time.monotonic()
    assert await reason(worker.call("Read", b"")) is Reason.WORKER_HUNG
    assert time.monotonic() - began < 2


PIECE = "receive()\nsend(ITEM, bytes(4) + {})\n"


async def test_an_answer_in_pieces(start: Start) -> None:
    """They are put together, and other calls get their turn in between."""
    other = "assert receive()[1] == b'Other\\0'\nsend(RESULT, b'other')\n"
    pieces = PIECE.format("b'one'") + other + PIECE.format("b'two'")
    worker = await start(f"send(READY)\n{pieces}receive()\nsend(END)\ntime.sleep(60)")
    long = asyncio.ensure_future(worker.call("ReadV", b""))
    await asyncio.sleep(0)
    assert await worker.call("Other", b"") == b"other"
    assert await long == b"onetwo"


async def test_pieces_without_end(start: Start) -> None:
    worker = await start(f"send(READY)\nwhile True:\n    {PIECE.format('bytes(4 << 20)').replace(chr(10), '; ')}")
    assert await reason(worker.call("ReadV", b"")) is Reason.WORKER_DIED


@pytest.mark.parametrize("code", ["sys.exit(3)", "sock.sendall(os.urandom(4096))", "send(READY, b'\\xff')", "send(1)"])
async def test_no_greeting(start: Start, code: str) -> None:
    """A worker that does not come up is a typed error, and leaves no descriptor."""
    before = len(os.listdir("/proc/self/fd"))
    assert await reason(start(code)) is Reason.WORKER_DIED
    await asyncio.sleep(0.1)
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_no_process_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of descriptors, of memory, of processes."""

    async def spawn(arguments: object) -> None:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(process, "_spawn", spawn)
    assert await reason(Worker.start(Bounds(1 << 30, 60, 2))) is Reason.WORKER_DIED


async def test_socket_is_closed_if_there_is_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    before = len(os.listdir("/proc/self/fd"))
    assert await reason(Worker.start(Bounds(1 << 30, 60, 2))) is Reason.WORKER_DIED
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_a_worker_says_can_not_flood_the_log(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Its standard error is read slowly and in pieces; the loop stays free."""
    caplog.set_level(logging.WARNING)
    worker = await start("send(READY)\nwhile True:\n    os.write(2, b'audit: {}\\n' * 4096)")
    longest = 0.0
    for _ in range(50):
        began = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - began)
    assert longest < 0.2
    said = [record for record in caplog.records if f"worker {worker.pid}" in record.getMessage()]
    assert sum(len(record.getMessage()) for record in said) < 200_000
    began = time.monotonic()
    await worker.close()
    assert time.monotonic() - began < 2


async def test_cancelled_caller_of_a_failing_call_is_not_missed(start: Start) -> None:
    """The next caller gets its own answer, and nobody complains that the first one's was never asked for."""
    said: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    code = "send(READY)\nreceive()\ntime.sleep(0.3)\nfail('NOT_MAPPED')\nreceive()\nsend(RESULT, b'second')"
    worker = await start(code)
    first = asyncio.ensure_future(worker.call("Read", b""))
    await asyncio.sleep(0.1)
    first.cancel()
    assert await worker.call("Read", b"") == b"second"
    with pytest.raises(asyncio.CancelledError):
        await first
    del first
    await asyncio.sleep(0)
    assert not said
