"""A grpc server behind the guard, with handlers made for the purpose."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health_pb2_grpc
from grpc_status import rpc_status

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.errors import KvmError
from kvmd.front.peer import Peer
from kvmd.front.peers import Connection
from kvmd.metrics import Metrics
from kvmd.rpc.interceptor import Guard


class Everybody:
    """A table of peers in which every connection is one of ``uid``."""

    def __init__(self) -> None:
        self.uid: int | None = 1000
        self.refusal: KvmError | None = None

    def lookup(self, grpc_peer: str) -> Connection | None:
        if self.uid is None:
            return None
        return Connection(Peer(self.uid, self.uid, 1), "token", 0, refusal=self.refusal)


class Bed:
    """What a test talks to: ``call`` for each method by name, all of bytes."""

    def __init__(self, path: str, peers: Everybody, metrics: Metrics) -> None:
        self.path, self.peers, self.metrics = path, peers, metrics

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self.path}", options=[("grpc.use_local_subchannel_pool", 1)])


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Bed]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    @contextlib.asynccontextmanager
    async def run(
        most: int = 10,
        call: float = 5,
        stream: float = 5,
        limits: Mapping[str, int] = MappingProxyType({}),
        **handlers: Any,
    ) -> AsyncIterator[Bed]:
        peers = Everybody()
        quotas = Quotas(Limits(**{"calls_per_uid": most, **limits}))
        metrics = Metrics(quotas, cast("Any", None), cast("Any", None))
        guard = Guard(cast("Any", peers), quotas, metrics, call_deadline=call, stream_deadline=stream)
        server = grpc.aio.server(interceptors=[guard])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(health_aio.HealthServicer(), server)
        path = str(tmp_path / "grpc")
        server.add_insecure_port(f"unix:{path}")
        await server.start()
        try:
            yield Bed(path, peers, metrics)
        finally:
            await server.stop(0)

    return run


def info(failure: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of a status."""
    status = rpc_status.from_call(failure)
    assert status is not None, failure
    (detail,) = status.details
    found = error_details_pb2.ErrorInfo()
    assert detail.Unpack(found)
    assert (status.code, status.message) == (failure.code().value[0], failure.details())
    return found
