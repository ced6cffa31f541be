"""The front before a real grpc.aio server: what grpc says of a connection leads to its client, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

import grpc
import pytest

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.front.listener import bind_unix
from kvmd.front.lock import InstanceLock
from kvmd.front.peers import Peers
from kvmd.front.private import private_directory
from kvmd.front.relay import Front

MIB = 1 << 20


class Service:
    """Who calls, and a stream that never ends."""

    def __init__(self, peers):
        self.peers = peers
        self.seen = []
        self.cancelled = asyncio.Event()

    async def who(self, request, context):
        connection = self.peers.lookup(context.peer())
        self.seen.append((context.peer(), connection))
        return connection.peer.identity.encode() if connection else b"nobody"

    async def stream(self, request, context):
        try:
            while True:
                yield bytes(MIB)
        finally:
            self.cancelled.set()

    def handlers(self):
        return grpc.method_handlers_generic_handler(
            "t",
            {
                "who": grpc.unary_unary_rpc_method_handler(self.who),
                "stream": grpc.unary_stream_rpc_method_handler(self.stream),
            },
        )


@contextlib.asynccontextmanager
async def serving(place):
    public = f"{place}/kvmd.sock"
    peers = Peers()
    service = Service(peers)
    with InstanceLock(public) as lock, private_directory(public) as private:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((service.handlers(),))
        server.add_insecure_port(f"unix:{private}")
        await server.start()
        front = Front(peers, private, Quotas(Limits())["connections"])
        front.serve(bind_unix(public, 0o666, lock))
        try:
            yield service, public, private, front
        finally:
            front.close()
            await server.stop(0)


def channel(path):
    return grpc.aio.insecure_channel(f"unix:{path}", options=[("grpc.use_local_subchannel_pool", 1)])


async def test_grpc_echoes_the_token_as_it_is(place):
    async with serving(place) as (service, public, _, _), channel(public) as chan:
        assert await chan.unary_unary("/t/who")(b"") == f"uid:{os.getuid()}".encode()
    ((name, connection),) = service.seen
    assert name == f"unix-abstract:{connection.token}"
    assert connection.peer.pid == os.getpid()


async def test_every_connection_is_itself(place):
    async with serving(place) as (service, public, _, _), channel(public) as one, channel(public) as two:
        for chan in (one, two, one, two):
            await chan.unary_unary("/t/who")(b"")
    a, b, c, d = (connection for _, connection in service.seen)
    assert a is c
    assert b is d
    assert a is not b


async def test_the_private_socket_itself_is_nobodys(place):
    async with serving(place) as (_, _, private, _), channel(private) as chan:
        assert await chan.unary_unary("/t/who")(b"") == b"nobody"


async def test_the_private_socket_by_a_forged_name_is_nobodys(place):
    """Root alone can try, and gets a name of its choice through; it is in no table."""
    async with serving(place) as (service, _, private, _):
        forger = socket.socket(socket.AF_UNIX)
        forger.bind("\0" + "0" * 32)
        forger.connect(private)
        forger.setblocking(False)
        listener = f"{place}/forge"

        async def relay(reader, writer):
            up_reader, up_writer = await asyncio.open_unix_connection(sock=forger)

            async def copy(source, target):
                with contextlib.suppress(ConnectionError):
                    while data := await source.read(65536):
                        target.write(data)
                target.close()

            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))

        server = await asyncio.start_unix_server(relay, listener)
        async with channel(listener) as chan:
            assert await chan.unary_unary("/t/who")(b"") == b"nobody"
        server.close()
        assert service.seen == [("unix-abstract:" + "0" * 32, None)]


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
async def test_another_user_cant_reach_the_private_socket(place, spawn):
    async with serving(place) as (_, _, _private, _):
        process = spawn(
            "try: socket.socket(socket.AF_UNIX).connect(sys.argv[1] + '.private/grpc')\n"
            "except OSError as e: print(e.errno, flush=True)\n",
            user=12345,
            group=12345,
        )
        assert await asyncio.to_thread(process.stdout.readline) == b"13\n"


async def test_a_stream_is_cancelled_when_its_client_is_killed(place):
    async with serving(place) as (service, public, _, _front):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import grpc, sys\n"
            "call = grpc.insecure_channel(f'unix:{sys.argv[1]}').unary_stream('/t/stream')(b'')\n"
            "for message in call: print(len(message), flush=True)\n",
            public,
            stdout=asyncio.subprocess.PIPE,
        )
        assert await process.stdout.readline() == b"1048576\n"
        (connection,) = service.peers
        process.kill()
        await asyncio.wait_for(service.cancelled.wait(), 5)
        assert connection.closed
        await process.communicate()


async def test_a_large_stream_is_whole(place):
    async with serving(place) as (_, public, _, _), channel(public) as chan:
        call = chan.unary_stream("/t/stream")(b"")
        for _ in range(64):
            assert len(await call.read()) == MIB
        call.cancel()


async def test_stop_accepting_lets_calls_finish(place):
    async with serving(place) as (_, public, _, front), channel(public) as chan:
        await chan.unary_unary("/t/who")(b"")
        front.stop_accepting()
        assert await chan.unary_unary("/t/who")(b"") == f"uid:{os.getuid()}".encode()
