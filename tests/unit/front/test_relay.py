"""The front relays every byte, passes half-closes on, and a slow client holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

import pytest


async def test_bytes_pass_both_ways_unchanged(bed):
    bed.start()
    reader, writer = await bed.client()
    up, down, _ = await bed.upstream()
    sent = os.urandom(5_000_000)

    async def echo():
        while data := await up.read(70_000):
            down.write(data)
            await down.drain()

    task = asyncio.create_task(echo())
    writer.write(sent)
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 20) == sent
    writer.close()
    with contextlib.suppress(ConnectionError):
        await task


async def test_what_the_upstream_said_last_arrives_before_the_end(bed, closed):
    bed.start()
    reader, _ = await bed.client()
    _, writer, connection = await bed.upstream()
    said = os.urandom(3_000_000)
    writer.write(said)
    writer.close()
    assert await asyncio.wait_for(reader.read(-1), 5) == said
    await closed(connection)


async def test_what_the_upstream_said_last_arrives_though_it_no_longer_listens(bed, place, until, inward, outward):
    """The upstream has gone, its answer is still underway to a slow client, and what the client sends now fails."""
    upstream = socket.socket(socket.AF_UNIX)
    bed.private = f"{place}/raw"
    upstream.bind(bed.private)
    upstream.listen()
    bed.start()
    client = socket.socket(socket.AF_UNIX)
    client.connect(bed.public)
    await until(lambda: len(bed.peers) == 1)
    (connection,) = bed.peers
    side, _ = upstream.accept()
    side.setblocking(False)
    said = b""
    while True:  # as much as the relay holds and the sockets on both sides
        piece = os.urandom(65536)
        try:
            said += piece[: side.send(piece)]
        except BlockingIOError:
            held = len(said)
            await until(lambda: outward(connection).waiting)
            for _ in range(10):
                await asyncio.sleep(0)
            with contextlib.suppress(BlockingIOError):
                said += piece[: side.send(piece)]
            if len(said) == held:
                break
    side.close()
    client.send(b"into the void")
    await until(lambda: inward(connection).ended)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(5):
        while data := await loop.sock_recv(client, 1 << 20):
            got += data
    assert got == said
    assert connection.closed
    client.close()
    upstream.close()


async def test_half_close_is_passed_on(bed):
    bed.start()
    reader, writer = await bed.client()
    up, down, connection = await bed.upstream()
    writer.write(b"question")
    writer.write_eof()
    assert await asyncio.wait_for(up.read(-1), 5) == b"question"
    assert not connection.closed
    down.write(b"answer")
    down.close()
    assert await asyncio.wait_for(reader.read(-1), 5) == b"answer"


async def test_half_close_of_both_sides_closes(bed, closed):
    bed.start()
    _, writer = await bed.client()
    up, down, connection = await bed.upstream()
    writer.write_eof()
    assert await asyncio.wait_for(up.read(-1), 5) == b""
    down.write_eof()
    await closed(connection)


async def test_a_client_that_does_not_read_costs_one_buffer_and_nobody_else_anything(bed):
    bed.start()
    stalled = socket.socket(socket.AF_UNIX)
    stalled.connect(bed.public)
    _, down, connection = await bed.upstream()
    down.transport.set_write_buffer_limits(0)
    accepted = 0
    with contextlib.suppress(TimeoutError):
        while True:
            down.write(bytes(65536))
            await asyncio.wait_for(down.drain(), 0.3)
            accepted += 65536
    assert 0 < accepted < 2 << 20

    reader, writer = await bed.client()
    up, down2, _ = await bed.upstream()
    writer.write(b"ping")
    assert await asyncio.wait_for(up.readexactly(4), 1) == b"ping"
    down2.write(b"pong")
    assert await asyncio.wait_for(reader.readexactly(4), 1) == b"pong"
    assert not connection.closed
    stalled.close()


async def test_what_is_held_for_one_client_is_not_overwritten_by_another(bed, until, outward):
    """All pumps read into one buffer."""
    bed.start()
    slow = socket.socket(socket.AF_UNIX)
    slow.connect(bed.public)
    _, down, connection = await bed.upstream()
    theirs = os.urandom(2 << 20)
    down.write(theirs)
    await until(lambda: outward(connection).waiting)

    _reader, writer = await bed.client()
    up, _, _ = await bed.upstream()
    writer.write(bytes(4 << 20))
    writer.write_eof()
    assert len(await asyncio.wait_for(up.read(-1), 5)) == 4 << 20

    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(5):
        while len(got) < len(theirs):
            got += await loop.sock_recv(slow, 1 << 20)
    assert got == theirs
    slow.close()


async def test_a_client_that_never_reads_is_cut(bed, closed):
    bed.start(patience=0.2)
    stalled = socket.socket(socket.AF_UNIX)
    stalled.connect(bed.public)
    _, down, connection = await bed.upstream()
    down.write(bytes(4 << 20))
    await closed(connection)
    stalled.close()


async def test_a_slow_client_is_not_cut(bed):
    patience = 0.3
    bed.start(patience=patience)
    reader = socket.socket(socket.AF_UNIX)
    reader.connect(bed.public)
    reader.setblocking(False)
    _, down, connection = await bed.upstream()
    size = 3 << 20
    down.write(bytes(size))
    start = time.monotonic()
    got = 0
    loop = asyncio.get_running_loop()
    while got < size:
        data = await loop.sock_recv(reader, 256 << 10)
        assert data, "cut"
        got += len(data)
        await asyncio.sleep(patience / 4)  # the slowness that is tested
    assert time.monotonic() - start > 2 * patience
    assert not connection.closed
    reader.close()


async def test_an_idle_client_is_not_cut(bed):
    bed.start(patience=0.05)
    reader, _ = await bed.client()
    _, _down, connection = await bed.upstream()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.2)
    assert not connection.closed
