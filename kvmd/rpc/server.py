"""The grpc.aio server behind the front: services, limits, self-test."""

from __future__ import annotations

import grpc
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from kvmd.config import Limits
from kvmd.direct import Direct
from kvmd.front.peers import Peers
from kvmd.metrics import Metrics
from kvmd.rpc.admin import AdminService
from kvmd.rpc.interceptor import Guard
from kvmd.rpc.probe import ANSWERED, REFUSED, ask
from kvmd.rpc.reflection import Reflection
from kvmd.rpc.service import NAME, KvmService
from kvmd.sessions import Sessions

# A ReadV answer holds up to 16 MiB of memory; the largest request is Nlist's, of 4096 names of 512 bytes.
_OPTIONS = [
    ("grpc.max_receive_message_length", 3 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    ("grpc.so_reuseport", 0),
    # Clients of other hosts ask every 20 s whether the daemon is there, with a call under way or not: see libkvm.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
]


class Server:
    """KvmService, AdminService, health and reflection on a private socket."""

    def __init__(
        self, peers: Peers, sessions: Sessions, direct: Direct, metrics: Metrics, limits: Limits
    ) -> None:
        guard = Guard(
            peers, metrics.quotas, metrics, call_deadline=limits.call_deadline, stream_deadline=limits.stream_deadline
        )
        # A client's grpc keeps calls beyond this back by itself: one with a single connection meets no CALL_LIMIT.
        options = [*_OPTIONS, ("grpc.max_concurrent_streams", limits.calls_per_uid)]
        # A connection that does not begin as HTTP/2 does (preface, SETTINGS) is cut.
        options.append(("grpc.server_handshake_timeout_ms", int(limits.stall * 1000)))
        # The guard counts calls once their headers have come; this bounds those whose haven't.
        most = 2 * limits.concurrent_calls
        # Calls wait for the guard in one queue; where it is too long by grpc's default, any of them is cancelled.
        queue = limits.connections * limits.calls_per_uid
        options += [("grpc.server.max_pending_requests", queue), ("grpc.server.max_pending_requests_hard_limit", queue)]
        self._server = grpc.aio.server(interceptors=[guard], options=options, maximum_concurrent_rpcs=most)
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        admin = AdminService(peers, sessions, metrics)
        handlers = (KvmService(sessions, direct).handler(), admin.handler(), Reflection(NAME, health.SERVICE_NAME))
        self._server.add_generic_rpc_handlers(handlers)
        self._path = ""

    async def start(self, path: str) -> None:
        """Listen on the private socket at ``path``, in a directory that only the daemon can enter."""
        self._path = path
        await self.serving(False)
        self._server.add_insecure_port(f"unix:{path}")
        await self._server.start()

    async def serving(self, yes: bool) -> None:
        """Tell health checks."""
        status = health_pb2.HealthCheckResponse
        for service in ("", NAME):
            await self._health.set(service, status.SERVING if yes else status.NOT_SERVING)

    async def self_test(self, front: str) -> None:
        """Check that a connection through the front has an identity and one beside it has none.

        :param front: a socket that the front serves.
        :raises RuntimeError: if grpc does not echo the token; the daemon must not serve then.
        """
        through, beside = await ask(front), await ask(self._path)
        if through != ANSWERED or beside != REFUSED:
            raise RuntimeError(
                f"self-test failed: a call through the front gave {through}, one beside it {beside}; "
                "this version of grpcio does not report the source address of Unix sockets"
            )

    async def stop(self, grace: float) -> None:
        """Let calls under way finish for ``grace`` seconds, then end them."""
        await self._server.stop(grace)
