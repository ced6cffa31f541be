"""The front knows who is there, and notices at once when they are gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time

import pytest


def _state(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(") ")[2][0]


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
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


async def test_a_close_is_seen_though_the_process_lives_and_nothing_is_read(bed, closed, until, inward):
    bed.start()
    client = socket.socket(socket.AF_UNIX)
    client.connect(bed.public)
    _, writer, connection = await bed.upstream()
    writer.transport.pause_reading()
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(loop.sock_sendall(client, bytes(10 << 20)))
    await until(lambda: inward(connection).waiting)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    client.close()
    await closed(connection)


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
