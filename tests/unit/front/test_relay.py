"""The front relays, knows who is there, and lets nobody hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import time

import pytest

from kvmd.front import relay


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


async def test_identity_is_the_client_processs(bed, spawn):
    bed.start()
    process = spawn("sock.recv(1)", user=12345, group=2345, extra_groups=[7, 8])
    _, _, connection = await bed.upstream()
    peer = connection.peer
    assert (peer.uid, peer.gid, peer.pid, peer.groups) == (12345, 2345, process.pid, (7, 8))
    assert peer.identity == "uid:12345"
    assert peer.exe == os.readlink(f"/proc/{process.pid}/exe")


async def test_two_connections_have_two_tokens_and_ordered_times(bed):
    bed.start()
    await bed.client()
    _, _, one = await bed.upstream()
    await bed.client()
    _, _, two = await bed.upstream()
    assert one.token != two.token
    assert one.opened < two.opened


@pytest.mark.parametrize("name", ["", "unix:", "unix-abstract:", "unix-abstract:" + "0" * 32, "ipv4:127.0.0.1:1"])
async def test_an_unknown_name_is_nobody(bed, name):
    bed.start()
    await bed.client()
    await bed.upstream()
    assert bed.peers.lookup(name) is None


async def test_a_client_that_closes_is_gone_at_once(bed, closed):
    bed.start()
    _, writer = await bed.client()
    _, _, connection = await bed.upstream()
    start = time.monotonic()
    writer.close()
    await closed(connection)
    assert time.monotonic() - start < 1
    assert len(bed.peers) == 0


async def test_a_client_killed_is_gone_within_a_second(bed, spawn, closed):
    bed.start()
    process = spawn("sock.recv(1)")
    _, _, connection = await bed.upstream()
    start = time.monotonic()
    process.kill()
    await closed(connection)
    assert time.monotonic() - start < 1


async def test_a_client_that_dies_while_the_upstream_does_not_read_is_gone(bed, spawn, closed):
    """Nothing is read from the client then, so that its end of file can't be seen."""
    bed.start()
    process = spawn("sock.sendall(bytes(10 << 20))")
    _, writer, connection = await bed.upstream()
    writer.transport.pause_reading()
    process.kill()
    await closed(connection)


async def test_a_close_is_seen_though_the_process_lives_and_nothing_is_read(bed, closed):
    bed.start()
    client = socket.socket(socket.AF_UNIX)
    client.connect(bed.public)
    _, writer, connection = await bed.upstream()
    writer.transport.pause_reading()
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(loop.sock_sendall(client, bytes(10 << 20)))
    await _until(lambda: _inward(connection).waiting)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    client.close()
    await closed(connection)


def _inward(connection):
    """The pump from the client; reached through the callback that the link left with its connection."""
    (link,) = [each.__self__ for each in connection._callbacks if hasattr(each, "__self__")]
    return link._pumps[0]


async def test_a_child_that_holds_the_socket_inherits_nothing(bed, spawn, closed):
    """As in SPIRE's peertracker test: the process that connected dies, its child keeps the connection open."""
    bed.start()
    process = spawn(
        "child = os.fork()\nif not child: time.sleep(60)\nprint(child, flush=True)\nsys.stdin.read(1)\nos._exit(0)\n"
    )
    _, _, connection = await bed.upstream()
    child = int(await asyncio.to_thread(process.stdout.readline))
    try:
        assert not connection.closed
        process.stdin.write(b"x")
        process.stdin.flush()
        await closed(connection)
        assert _state(child) in "SR"  # alive, and no zombie
    finally:
        os.kill(child, signal.SIGKILL)


def _state(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(") ")[2][0]


async def test_what_the_upstream_said_last_arrives_before_the_end(bed, closed):
    bed.start()
    reader, _ = await bed.client()
    _, writer, connection = await bed.upstream()
    said = os.urandom(3_000_000)
    writer.write(said)
    writer.close()
    assert await asyncio.wait_for(reader.read(-1), 5) == said
    await closed(connection)


async def test_what_the_upstream_said_last_arrives_though_it_no_longer_listens(bed, closed):
    """The client is still sending when the upstream goes: that write fails, the answer must not."""
    bed.start()
    reader, writer = await bed.client()
    _up, down, connection = await bed.upstream()
    said = os.urandom(1_000_000)
    task = asyncio.create_task(reader.readexactly(len(said)))
    down.write(said)
    await down.drain()
    down.close()
    with contextlib.suppress(ConnectionError):
        while not connection.closed:
            writer.write(b"x" * 1000)
            await asyncio.sleep(0)
    assert await asyncio.wait_for(task, 5) == said


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
    await up.read(-1)
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
        got += len(await loop.sock_recv(reader, 256 << 10))
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


async def test_a_user_over_the_limit_is_turned_away_and_others_are_not(bed, spawn):
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
    await _until(lambda: bed.peers.count(os.getuid()) == 1)
    await bed.client()
    await bed.upstream()


async def test_over_the_limit_of_connections(bed):
    bed.start(max_connections=1)
    await bed.client()
    await bed.upstream()
    reader, _ = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    assert len(bed.peers) == 1


async def _until(condition):
    """Let the loop run until a condition holds that has no event: of descriptors, of a pump."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_thousands_of_clients_leave_nothing(bed, fds):
    front = bed.start()
    before = fds()
    for _ in range(3000):
        client = socket.socket(socket.AF_UNIX)
        client.connect(bed.public)
        client.close()
        await asyncio.sleep(0)
    await _until(lambda: _drain(bed) and len(bed.peers) == 0 and fds() == before)
    assert len(bed.peers._by_uid) == 0
    assert front._watch._callbacks == {}


def _drain(bed):
    while not bed.sides.empty():
        bed.sides.get_nowait()[1].close()
    return True


async def test_no_upstream_closes_the_client_and_leaves_nothing(bed, fds):
    bed.private += "-is-not-there"
    bed.start()
    before = fds()
    reader, writer = await bed.client()
    assert await asyncio.wait_for(reader.read(-1), 5) == b""
    writer.close()
    assert len(bed.peers) == 0
    await _until(lambda: fds() == before)


async def test_a_full_upstream_queue_is_waited_for(bed, place):
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
    await _until(lambda: len(bed.peers) == 1)
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


async def test_out_of_descriptors_pauses_and_goes_on(bed, spawn, monkeypatch):
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
        await _until(lambda: calls >= 3)
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


async def test_close_closes_everything_and_runs_callbacks(bed, fds):
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
    await _until(lambda: fds() == before)
