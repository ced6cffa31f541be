"""The daemon's question to itself: beside grpc's own client, and of servers that are no gRPC servers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvmd.errors import Reason, error
from kvmd.rpc import probe

from .conftest import Serve


async def by_grpc(path: str) -> str:
    """What grpc's client gets."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as failure:
            return failure.code().name
    return "OK"


async def test_is_answered_as_others_are(serve: Serve) -> None:
    async with serve() as bed:
        for _ in range(3):
            assert (await probe.ask(bed.path), await by_grpc(bed.path)) == (probe.ANSWERED, "OK")
        bed.peers.uid = None
        for _ in range(3):
            assert (await probe.ask(bed.path), await by_grpc(bed.path)) == (probe.REFUSED, "UNAUTHENTICATED")


async def test_is_refused_otherwise(serve: Serve) -> None:
    """Whatever the status is."""
    async with serve() as bed:
        bed.peers.refusal = error(Reason.CONNECTION_LIMIT, "too many", key="connections")
        assert await by_grpc(bed.path) == "RESOURCE_EXHAUSTED"
        assert await probe.ask(bed.path) == probe.REFUSED


@contextmanager
def answering(path: Path, *answers: bytes) -> Iterator[str]:
    """A server that says so much to one client, piece by piece, and closes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            with listening.accept()[0] as client, suppress(OSError):
                client.recv(4096)
                for answer in answers:
                    client.sendall(answer)
                client.shutdown(socket.SHUT_WR)
                client.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()


SETTINGS, GOAWAY = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\7\0\0\0\0\0"
DATA, RESET, ENDED = b"\0\0\1\0\0\0\0\0\1x", b"\0\0\0\3\0\0\0\0\1", b"\0\0\1\1\5\0\0\0\1\x88"


@pytest.mark.parametrize(
    ("answers", "comes_to"),
    [
        ((), "no answer"),
        ((SETTINGS,), "no answer"),
        ((SETTINGS + GOAWAY,), "no answer"),
        ((SETTINGS, DATA, RESET), "no answer"),
        ((SETTINGS, DATA), "no answer"),
        ((SETTINGS, ENDED), probe.REFUSED),
        ((SETTINGS, DATA, ENDED), probe.ANSWERED),
        (tuple(bytes((each,)) for each in SETTINGS + DATA + ENDED), probe.ANSWERED),
        ((b"HTTP/1.1 400 Bad Request\r\n\r\n",), "an answer that is no HTTP/2"),
        ((b"\xff" * 100,), "an answer that is no HTTP/2"),
    ],
)
async def test_of_strange_servers(tmp_path: Path, answers: tuple[bytes, ...], comes_to: str) -> None:
    with answering(tmp_path / "sock", *answers) as path:
        assert await probe.ask(path) == comes_to


async def test_is_answered_in_time_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_PATIENCE", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(tmp_path / "sock"))
        listening.listen()
        assert await probe.ask(str(tmp_path / "sock")) == "no answer in time"


async def test_where_nobody_is(tmp_path: Path) -> None:
    assert "No such file" in await probe.ask(str(tmp_path / "sock"))
