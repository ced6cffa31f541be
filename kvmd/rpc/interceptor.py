"""What every call goes through: who is it, how long may it take, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc

from kvmd.errors import KvmError, Reason, error
from kvmd.front.peers import Connection, Peers
from kvmd.rpc.status import abort

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

Unary: TypeAlias = Callable[[Any, Context], Awaitable[Any]]
Stream: TypeAlias = Callable[[Any, Context], AsyncIterator[Any]]

caller: contextvars.ContextVar[Connection] = contextvars.ContextVar("caller")
"""The connection whose call is being handled."""


def _internal(method: str) -> KvmError:
    """An error that tells the client no more than where the log explains it."""
    incident = secrets.token_hex(4)
    log.exception("incident %s in %s", incident, method)
    message = f"internal error (incident {incident}); the daemon's log explains it"
    return error(Reason.INTERNAL, message, incident=incident)


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server."""

    def __init__(self, peers: Peers, *, call_deadline: float, stream_deadline: float) -> None:
        self._peers = peers
        self._deadlines = {False: call_deadline, True: stream_deadline}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Put the guard around the method's handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        guard = self._stream if handler.response_streaming else self._unary
        kind = ("stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary")
        make = getattr(grpc, f"{kind[0]}_{kind[1]}_rpc_method_handler")
        inner = getattr(handler, f"{kind[0]}_{kind[1]}")
        made: Handler = make(guard(inner, details.method), handler.request_deserializer, handler.response_serializer)
        return made

    def _enter(self, context: Context) -> None:
        connection = self._peers.lookup(context.peer())
        if connection is None:
            raise error(Reason.NO_PEER_IDENTITY, "this connection did not come through the daemon's socket")
        caller.set(connection)

    def _timeout(self, context: Context, streams: bool) -> asyncio.Timeout:
        left, most = context.time_remaining(), self._deadlines[streams]
        return asyncio.timeout(most if left is None else min(left, most))

    def _unary(self, inner: Unary, method: str) -> Unary:
        async def call(request: Any, context: Context) -> Any:
            try:
                self._enter(context)
                async with self._timeout(context, False):
                    return await inner(request, context)
            except (KvmError, TimeoutError) as failure:
                await abort(context, _typed(failure, method))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:  # noqa: BLE001 - nothing may leak to the client
                await abort(context, _internal(method))

        return call

    def _stream(self, inner: Stream, method: str) -> Stream:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                self._enter(context)
                async with self._timeout(context, True):
                    async for answer in inner(request, context):
                        yield answer
            except (KvmError, TimeoutError) as failure:
                await abort(context, _typed(failure, method))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception:  # noqa: BLE001 - nothing may leak to the client
                await abort(context, _internal(method))

        return call


def _typed(failure: KvmError | TimeoutError, method: str) -> KvmError:
    if isinstance(failure, KvmError):
        return failure
    return error(Reason.DEADLINE, f"{method.rpartition('/')[2]} did not finish in time", method=method)
