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

from kvmd.front import relay


def _drain(bed):
    while not bed.sides.empty():
        bed.sides.get_nowait()[1].close()
    return True


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
async def test_a_user_over_the_limit_is_turned_away_and_others_are_not(bed, spawn, until):
    front = bed.start(max_per_uid=2)
    kept = [await bed.client() for _ in range(2)]
    for _ in range(2):
        await bed.upstream()
    reader, _ = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    assert front.refused == 1
    spawn("sock.recv(1)", user=12345)
    _, _, other = await bed.upstream()
    assert other.peer.uid == 12345
    kept[0][1].close()
    await until(lambda: bed.peers.count(os.getuid()) == 1)
    await bed.client()
    await bed.upstream()


async def test_over_the_limit_of_connections(bed):
    bed.start(max_connections=1)
    await bed.client()
    await bed.upstream()
    reader, _ = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    assert len(bed.peers) == 1


async def test_thousands_of_clients_leave_nothing(bed, fds, until):
    front = bed.start()
    before = fds()
    for _ in range(3000):
        client = socket.socket(socket.AF_UNIX)
        client.connect(bed.public)
        client.close()
        await asyncio.sleep(0)
    await until(lambda: _drain(bed) and len(bed.peers) == 0 and fds() == before)
    assert len(bed.peers._by_uid) == 0
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
