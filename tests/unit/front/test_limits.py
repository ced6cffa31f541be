"""Limits, exhaustion, and the end of the front: nobody is harmed but who caused it, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import subprocess
import time

import pytest

from kvmd.access.limits import Flow
from kvmd.config import Limits
from kvmd.errors import Reason
from kvmd.front import relay


def _drain(bed):
    while not bed.sides.empty():
        bed.sides.get_nowait()[1].close()
    return True


async def refused(bed):
    """The entry of a client that has come in only to be told that there is no place for it."""
    client = await bed.client()
    _, _, connection = await bed.upstream()
    assert connection.refusal.reason is Reason.CONNECTION_LIMIT
    return client, connection


async def cut(bed):
    """Connect a client that is not even told so much."""
    reader, _ = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
async def test_a_user_over_the_limit_is_told_and_others_are_let_in(bed, spawn, until):
    front = bed.start(limits=Limits(connections_per_uid=2))
    kept = [await bed.client() for _ in range(2)]
    for _ in range(2):
        await bed.upstream()
    for _ in range(2):
        _, connection = await refused(bed)
        assert "limits.connections_per_uid" in connection.refusal.message
    await cut(bed)
    assert (front.refused, bed.quota.refused) == (1, 3)
    spawn("sock.recv(1)", user=12345)
    _, _, other = await bed.upstream()
    assert (other.peer.uid, other.refusal) == (12345, None)
    kept[0][1].close()
    await until(lambda: bed.quota.of(f"uid:{os.getuid()}") == 1)
    await bed.client()
    _, _, connection = await bed.upstream()
    assert connection.refusal is None


async def test_over_the_limit_of_connections(bed, monkeypatch, until):
    monkeypatch.setattr(relay, "_POLITE_SECONDS", 0.1)
    bed.start(limits=Limits(connections=1))
    await bed.client()
    await bed.upstream()
    (reader, _), connection = await refused(bed)
    assert "limits.connections)" in connection.refusal.message
    assert await asyncio.wait_for(reader.read(-1), 5) == b""  # it is told in time, or not at all
    await until(lambda: len(bed.peers) == 1)
    assert bed.front._turned_away == {}


async def test_the_refused_are_few(bed, monkeypatch):
    monkeypatch.setattr(relay, "_POLITE_TO_ALL", 1)
    bed.start(limits=Limits(connections=1))
    await bed.client()
    await bed.upstream()
    await refused(bed)
    await cut(bed)


async def test_the_daemons_own_connections_count_not(bed):
    told = []
    bed.start(limits=Limits(connections=1), own_pid=os.getpid(), on_connect=told.append)
    for _ in range(3):
        await bed.client()
        _, _, connection = await bed.upstream()
        assert connection.refusal is None
    assert (bed.quota.used, told) == (0, [])


async def test_who_comes_in_is_told_of(bed, until):
    told = []
    bed.start(on_connect=told.append)
    await bed.client()
    _, _, connection = await bed.upstream()
    await until(lambda: told == [connection])
    assert bed.quota.used == 1


async def test_who_sends_too_fast_waits_and_nobody_else_does(bed, spawn, until):
    """All that was sent comes in the end; what a client is sent is not held back; and who goes leaves nothing."""
    bed.start(flow=Flow(400_000))
    reader, writer = await bed.client()
    up, down, connection = await bed.upstream()
    writer.write(bytes(300_000))
    start = time.monotonic()
    down.write(bytes(300_000))
    await asyncio.wait_for(reader.readexactly(300_000), 5)
    assert time.monotonic() - start < 0.4
    await asyncio.wait_for(up.readexactly(300_000), 5)
    assert time.monotonic() - start > 0.4  # a quarter of a second's worth came at once
    writer.write(bytes(1 << 20))
    await until(lambda: bed.front._flow.waits > 20)
    writer.transport.abort()
    await until(lambda: connection.closed)


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
async def test_ones_connections_share_what_one_may_send(bed, spawn):
    """And another user's don't."""
    bed.start(flow=Flow(400_000))
    process = spawn("sock.sendall(bytes(300_000)); sock.recv(1)", user=12345)
    sides = [await bed.upstream()]
    for _ in range(2):
        _, writer = await bed.client()
        writer.write(bytes(200_000))
        sides.append(await bed.upstream())
    start = time.monotonic()
    for reader, _, _ in sides[1:]:
        await asyncio.wait_for(reader.readexactly(200_000), 5)
    assert time.monotonic() - start > 0.6
    await asyncio.wait_for(sides[0][0].readexactly(300_000), 5)
    process.kill()


async def test_thousands_of_clients_leave_nothing(bed, fds, until):
    front = bed.start()
    before = fds()
    for _ in range(3000):
        client = socket.socket(socket.AF_UNIX)
        client.connect(bed.public)
        client.close()
        await asyncio.sleep(0)
    await until(lambda: _drain(bed) and len(bed.peers) == 0 and fds() == before)
    assert bed.quota.used == 0
    assert front._watch._callbacks == {}


async def test_no_upstream_closes_the_client_and_leaves_nothing(bed, fds, until):
    bed.private += "-is-not-there"
    bed.start()
    before = fds()
    reader, writer = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    writer.close()
    assert len(bed.peers) == 0
    await until(lambda: fds() == before)


async def test_a_full_upstream_queue_is_waited_for(bed, place, until):
    upstream = socket.socket(socket.AF_UNIX)
    bed.private = f"{place}/slow"
    upstream.bind(bed.private)
    upstream.listen(0)
    waiting = []
    with contextlib.suppress(BlockingIOError):
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            waiting.append(sock)
            sock.connect(bed.private)
    bed.start()
    _reader, writer = await bed.client()
    writer.write(b"x")
    await until(lambda: len(bed.peers) == 1)
    for sock in waiting:
        sock.close()
    loop = asyncio.get_running_loop()
    upstream.setblocking(False)
    async with asyncio.timeout(5):
        got = b""
        while not got:
            side, _ = await loop.sock_accept(upstream)
            got = await loop.sock_recv(side, 1)
            side.close()
    assert got == b"x"
    upstream.close()


async def test_out_of_descriptors_pauses_and_goes_on(bed, spawn, monkeypatch, until):
    monkeypatch.setattr(relay, "_PAUSE", 0.05)
    front = bed.start()
    calls = 0
    pause = front._pause

    def counted(failure):
        nonlocal calls
        calls += 1
        pause(failure)

    monkeypatch.setattr(front, "_pause", counted)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = spawn("sys.stdin.read(1)\nsock.sendall(b'x')\nsock.recv(1)", stderr=subprocess.DEVNULL)
    await bed.upstream()
    process.stdin.write(b"x")
    process.stdin.flush()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
        spare = []
        with contextlib.suppress(OSError):
            while True:
                spare.append(os.dup(0))
        client = os.fdopen(spare.pop(), "rb")
        client.close()
        sock = socket.socket(socket.AF_UNIX)  # takes the last one
        sock.connect(bed.public)
        start = time.monotonic()
        await until(lambda: calls >= 3)
        assert time.monotonic() - start > 0.08  # three tries, two pauses
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in spare:
            os.close(fd)
    sock.send(b"y")
    reader, _, connection = await bed.upstream()
    assert await asyncio.wait_for(reader.read(1), 5) == b"y"
    assert connection.peer.pid == os.getpid()
    sock.close()


async def test_stop_accepting_keeps_connections(bed):
    front = bed.start()
    reader, _ = await bed.client()
    _, down, _ = await bed.upstream()
    front.stop_accepting()
    front.stop_accepting()
    with pytest.raises(ConnectionRefusedError):
        await bed.client()
    down.write(b"still")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"still"


async def test_close_closes_everything_and_runs_callbacks(bed, fds, until):
    before = fds()
    front = bed.start()
    reader, writer = await bed.client()
    _up, down, connection = await bed.upstream()
    ran = []
    connection.on_close(lambda: ran.append(1))
    front.close()
    front.close()
    assert ran == [1]
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    writer.close()
    down.close()
    await until(lambda: fds() == before)
