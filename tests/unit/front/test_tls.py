"""The relay of TLS connections: every byte, the end of it, and clients that don't behave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time

import pytest

from authority import Authority
from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.errors import Reason
from kvmd.front.certificates import TlsFiles
from kvmd.front.listener import bind_tcp
from kvmd.front.refusals import Refusals
from kvmd.front.relay import Front
from kvmd.front.remote import Remote
from tls13 import HandMade
from unit.front.conftest import closing


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def alice(authority):
    return authority.issue("alice")


@pytest.fixture
def context(authority, alice):
    made = ssl.create_default_context(cafile=authority.ca)
    made.load_cert_chain(alice.cert, alice.key)
    made.set_alpn_protocols(["h2"])
    return made


class Door:
    """A TLS listener before a bed's upstream."""

    def __init__(self, bed, authority, **options):
        self.told: list[tuple[str, str]] = []
        server = authority.server()
        limits = {key: options.pop(key) for key in ("most", "timeout") if key in options}
        bed.quota = Quotas(options.pop("quotas", Limits()))["connections"]
        bed.front = Front(bed.peers, bed.private, bed.quota, **options)
        refusals = Refusals(lambda *words: self.told.append(words))
        self.remote = Remote(TlsFiles(server.cert, server.key, authority.ca), bed.front.admit, refusals, **limits)
        listening = bind_tcp("127.0.0.1", 0)
        self.address = listening.getsockname()
        bed.front.serve(listening, greet=self.remote.take)


@pytest.fixture
async def door(bed, authority):
    made = []

    def start(**options):
        made.append(Door(bed, authority, **options))
        return made[-1]

    yield start
    for each in made:
        each.remote.close()
    await asyncio.sleep(0)


async def client(bed, door, context):
    reader, writer = await asyncio.open_connection(*door.address, ssl=context, server_hostname="localhost")
    bed.writers.append(writer)
    return reader, writer


async def hand_made(door, context, tmp_path):
    made = await asyncio.to_thread(HandMade, door.address, context, tmp_path / "keys")
    made.sock.setblocking(False)
    return made


async def test_bytes_pass_both_ways_unchanged(bed, door, context):
    reader, writer = await client(bed, door(), context)
    up, down, connection = await bed.upstream()
    assert connection.peer.identity == "cert:alice"
    assert connection.peer.certificate.address == "{}:{}".format(*writer.get_extra_info("sockname"))
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


async def test_what_the_upstream_said_last_arrives_before_the_end(bed, door, context, closed):
    reader, _ = await client(bed, door(), context)
    _, writer, connection = await bed.upstream()
    said = os.urandom(3_000_000)
    writer.write(said)
    writer.close()
    assert await asyncio.wait_for(reader.read(-1), 5) == said  # ended by close_notify, or this would raise
    await closed(connection)


async def test_what_came_with_the_end_of_the_handshake_is_not_lost(bed, door, context, tmp_path):
    """In one segment with the last message of the handshake, and nothing after it that would wake anybody."""
    made = await hand_made(door(), context, tmp_path)
    with made.sock:
        made.sock.send(made.finished + made.record(b"first ") + made.record(b"words"))
        up, _, _ = await bed.upstream()
        assert await asyncio.wait_for(up.readexactly(11), 5) == b"first words"


async def test_key_updates_are_followed(bed, door, context, tmp_path):
    made = await hand_made(door(), context, tmp_path)
    with made.sock:
        made.sock.send(made.finished + made.key_update() + made.record(b"under ") + made.key_update(False))
        made.sock.send(made.record(b"new keys"))
        up, _, _ = await bed.upstream()
        assert await asyncio.wait_for(up.readexactly(14), 5) == b"under new keys"


@pytest.mark.parametrize("answer", [False, True])
async def test_nothing_but_key_updates_ends_the_connection(bed, door, context, tmp_path, answer):
    """And meanwhile everybody else is served: no turn of the loop takes long."""
    made = await hand_made(door(), context, tmp_path)
    flood = b"".join(made.key_update(answer) for _ in range(12_000))
    slowest = 0.0
    with made.sock:
        made.sock.send(made.finished)
        _, _, connection = await bed.upstream()
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(loop.sock_sendall(made.sock, flood))
        while not connection.closed:
            began = time.monotonic()
            await asyncio.sleep(0)
            slowest = max(slowest, time.monotonic() - began)
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(task, 5)
    assert slowest < 0.5


@pytest.mark.parametrize("what", ["renegotiation", "noise", "alert", "too long"])
async def test_what_tls_13_has_not_ends_the_connection(bed, door, context, tmp_path, what):
    made = await hand_made(door(), context, tmp_path)
    words = {
        "renegotiation": made.hello_again,
        "noise": lambda: os.urandom(4096),
        "alert": lambda: made.record(b"\x02\x28", 21),
        "too long": lambda: b"\x17\x03\x03\xff\xff" + os.urandom(65535),
    }
    with made.sock:
        made.sock.send(made.finished)
        _, _, connection = await bed.upstream()
        made.sock.send(words[what]())
        await closing(connection)
    assert len(bed.peers) == 0


async def test_a_client_that_reads_nothing_is_cut(bed, door, context, closed):
    _, client_writer = await client(bed, door(patience=0.3), context)
    client_writer.transport.pause_reading()
    _, writer, connection = await bed.upstream()
    writer.write(bytes(20_000_000))
    began = time.monotonic()
    await closed(connection)
    assert 0.2 < time.monotonic() - began < 4


async def test_a_reset_closes_the_upstream(bed, door, context, closed):
    _, writer = await client(bed, door(), context)
    up, _, connection = await bed.upstream()
    writer.transport.abort()
    await closed(connection)
    assert await up.read() == b""


async def test_who_shows_nothing_is_turned_away(bed, door, until):
    opened = door(timeout=0.3)
    reader, writer = await asyncio.open_connection(*opened.address)
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    assert [reason for _, reason in opened.told] == ["no handshake within 0.3 s"]


async def test_who_shows_it_byte_by_byte_has_no_more_time(bed, door):
    opened = door(timeout=0.5)
    reader, writer = await asyncio.open_connection(*opened.address)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)
            if reader.at_eof():
                break
    assert time.monotonic() - began < 3
    assert [reason for _, reason in opened.told] == ["no handshake within 0.5 s"]
    writer.close()


async def test_a_flood_without_handshakes_keeps_nobody_out(bed, door, context, fds):
    """One address has so many places; and from many addresses, who has waited longest goes first."""
    opened = door(most=20)
    for last in range(2, 7):
        held = []
        for _ in range(20):
            sock = socket.socket()
            sock.bind((f"127.0.0.{last}", 0))
            sock.connect(opened.address)
            held.append(sock)
        await asyncio.sleep(0.05)
        assert len(opened.remote._waiting) <= 20
        reader, _ = await client(bed, opened, context)
        _, down, _ = await bed.upstream()
        down.write(b"hello")
        assert await asyncio.wait_for(reader.readexactly(5), 5) == b"hello"
        for sock in held:
            sock.close()
    reasons = {reason for _, reason in opened.told}
    assert "16 clients of this address have not shown a certificate yet" in reasons
    assert "pushed out by newer clients before it had shown a certificate" in reasons


async def test_a_flood_is_told_of_in_few_words(bed, door, until):
    opened = door()
    for _ in range(300):
        _, writer = await asyncio.open_connection(*opened.address)
        writer.close()
    await until(lambda: opened.remote._refusals.count == 300)
    assert len(opened.told) == 50


async def test_one_name_has_so_many_connections(bed, door, context, until):
    """Two more are let in to be told so, and the next is not."""
    opened = door(quotas=Limits(connections_per_uid=2))
    for refused in (False, False, True, True):
        await client(bed, opened, context)
        _, _, connection = await bed.upstream()
        assert (connection.refusal is not None) == refused
    assert connection.refusal.reason is Reason.CONNECTION_LIMIT
    reader, _ = await client(bed, opened, context)
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    await until(lambda: opened.told)
    assert "2 connections are open of cert:alice already (limits.connections_per_uid)" in opened.told[0][1]


async def test_nothing_is_left(bed, door, context, fds, until):
    opened = door()
    await client(bed, opened, context)
    await bed.upstream()
    for writer in bed.writers:
        writer.transport.abort()
    await until(lambda: len(bed.peers) == 0)
    bed.writers.clear()
    before = fds()
    for turn in range(1, 6):
        _, writer = await client(bed, opened, context)
        _, upstream, _ = await bed.upstream()
        writer.transport.abort()
        await until(lambda: len(bed.peers) == 0)
        upstream.transport.abort()
        for _ in range(50):
            sock = socket.create_connection(opened.address)
            sock.close()
        await until(lambda turn=turn: opened.remote._refusals.count == 50 * turn)
    await until(lambda: fds() == before)


async def test_no_tcp_without_tls(bed, door, place):
    opened = door()
    with bind_tcp("127.0.0.1", 0) as sock, pytest.raises(ValueError, match="TCP without TLS"):
        bed.front.serve(sock)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(ValueError, match="TLS over a Unix socket"):
        bed.front.serve(sock, greet=opened.remote.take)


async def test_to_look_after_certificates_goes_on_after_a_failure(bed, door, context, monkeypatch, caplog):
    """Or nobody would be expelled any more."""
    opened = door()
    await client(bed, opened, context)
    _, _, connection = await bed.upstream()
    looks = []

    class Connections:
        def __iter__(self):
            looks.append(1)
            if len(looks) == 1:
                raise RuntimeError("a fault of ours")
            return iter([connection])

    monkeypatch.setattr("kvmd.front.remote.LOOK", 0.01)
    monkeypatch.setattr("time.time", lambda: connection.peer.certificate.expires + 1)
    task = asyncio.create_task(opened.remote.watch(Connections()))
    await closing(connection)
    assert "a fault of ours" in caplog.text
    assert opened.told[-1][1] == "certificate has expired (cert:alice): its connection is closed"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
