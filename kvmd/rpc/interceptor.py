"""What every call goes through: who is it, how long may it take, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from typing import Any, Protocol, TypeAlias

import grpc
from google.rpc import status_pb2

from kvmd.access.limits import Quotas
from kvmd.errors import KvmError, Reason, error
from kvmd.front.peers import Connection, Peers
from kvmd.log import request_id
from kvmd.rpc.status import abort, to_status

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Call: TypeAlias = Callable[[AsyncIterator[Any], Context], Awaitable[None]]

caller: contextvars.ContextVar[Connection] = contextvars.ContextVar("caller")
"""The connection whose call is being handled."""

ADMIN = "/kvmd.v1.AdminService/"
OK = "OK"
_NOBODY = "this connection did not come through the daemon's socket"


class Observer(Protocol):
    """Who is told of every call that has ended: metrics.Metrics."""

    def called(self, method: str, status: str, seconds: float) -> None: ...  # noqa: D102


def _internal(method: str) -> KvmError:
    """An error that tells the client no more than where the log explains it."""
    log.exception("%s failed", method)
    return error(Reason.INTERNAL, f"internal error (request {request_id.get()}); the daemon's log explains it")


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server.

    To grpc all calls are streams both ways, which on the wire is the same: so a request that never comes and an
    answer that nobody takes count among the caller's calls, and their time passes, too.
    """

    def __init__(
        self, peers: Peers, quotas: Quotas, observer: Observer, *, call_deadline: float, stream_deadline: float
    ) -> None:
        """Guard the calls of these peers.

        :param call_deadline: the longest that a unary call may take, in seconds.
        :param stream_deadline: the longest that a streaming call may take.
        """
        self._peers, self._quotas, self._observer = peers, quotas, observer
        self._deadlines = {False: call_deadline, True: stream_deadline}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Handler | None]], details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Put the guard around the method's handler."""
        handler = await continuation(details)
        if handler is None:
            return None
        guarded = self._guarded(handler, details.method)
        make = grpc.stream_stream_rpc_method_handler
        made: Handler = make(guarded, handler.request_deserializer, handler.response_serializer)
        return made

    @contextmanager
    def _entered(self, connection: Connection, method: str, streams: bool) -> Iterator[None]:
        """Know the caller, and count the call as one of its calls; those by which the daemon tests itself count not."""
        caller.set(connection)
        if connection.refusal is not None:
            raise error(connection.refusal.reason, connection.refusal.message, **connection.refusal.metadata)
        if method.startswith(ADMIN) and not connection.admin:
            message = "the admin service answers on its own socket only (listen.admin)"
            raise error(Reason.POLICY_DENIED, message, path=method)
        with ExitStack() as held:
            if connection.peer.pid != os.getpid():
                owner = connection.peer.identity
                try:
                    self._quotas.rate.pass_(owner)
                    held.enter_context(self._quotas["calls"].held(owner))
                    if streams:
                        held.enter_context(self._quotas["streams"].held(owner))
                except KvmError:
                    self._quotas.flow.refused(owner)
                    raise
            yield

    def _timeout(self, context: Context, streams: bool) -> asyncio.Timeout:
        left, most = context.time_remaining(), self._deadlines[streams]
        return asyncio.timeout(most if left is None else min(left, most))

    def _guarded(self, handler: Handler, method: str) -> Call:
        async def call(requests: AsyncIterator[Any], context: Context) -> None:
            # Nothing of a failure but its status is left when the call ends: grpc keeps the abort's traceback and
            # with it all frames below, and memory by the mebibyte that they hold, until garbage is collected.
            request_id.set(os.urandom(4).hex())
            connection = self._peers.lookup(context.peer())
            if connection is None:  # no client, and at each start the self-test: no use to run what makes details
                self._observer.called(method, Reason.NO_PEER_IDENTITY.value, 0.0)
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, _NOBODY)
            status = await self._run(handler, requests, context, connection, method)
            if status is not None:
                await abort(context, status)

        return call

    async def _run(
        self, handler: Handler, requests: AsyncIterator[Any], context: Context, connection: Connection, method: str
    ) -> status_pb2.Status | None:
        """Handle a call; a failure is the answer."""
        began, status = time.monotonic(), Reason.CANCELLED.value
        try:
            with self._entered(connection, method, handler.response_streaming):
                async with self._timeout(context, handler.response_streaming):
                    await self._handle(handler, requests, context)
            status = OK
        except (KvmError, TimeoutError) as failure:
            # Kept in no variable of this frame, which its traceback keeps.
            status, answer = _answer(_typed(failure, method), method)
            return answer
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # the client went while it was written to
        except Exception:  # noqa: BLE001 - nothing may leak to the client
            status, answer = _answer(_internal(method), method)
            return answer
        finally:
            self._observer.called(method, status, time.monotonic() - began)
        return None

    async def _handle(self, handler: Handler, requests: AsyncIterator[Any], context: Context) -> None:
        """Run a handler of whichever kind and write what it answers."""
        request = requests if handler.request_streaming else await _only(context)
        kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
        answers = getattr(handler, kind)(request, context)
        if not isinstance(answers, AsyncGenerator):
            answer = await answers
            if not handler.response_streaming:  # else it has written by itself
                await self._write(context, answer)
            return
        # Closed here and not by the garbage collector: what it holds, a place in the worker, goes with the call.
        async with aclosing(answers):
            async for answer in answers:
                await self._write(context, answer)

    async def _write(self, context: Context, answer: Any) -> None:
        """Write one message; its bytes are the caller's until the caller has taken them."""
        size = len(answer) if isinstance(answer, bytes) else 0
        with self._quotas["inflight_bytes"].held(caller.get().peer.identity, size):
            await context.write(answer)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


async def _only(context: Context) -> Any:
    # Not by iteration: grpc's iterator, left before its end, stays until garbage is collected, and the call with it.
    request = await context.read()
    if request is grpc.aio.EOF:
        raise error(Reason.BAD_ARGUMENT, "the call came without its request message")
    return request


def _answer(failure: KvmError, method: str) -> tuple[str, status_pb2.Status]:
    """What metrics and the client are told of a failure."""
    log.debug("%s: %s: %s", method, failure.reason.value, failure.message)
    return failure.reason.value, to_status(failure, request_id.get())


def _typed(failure: KvmError | TimeoutError, method: str) -> KvmError:
    if isinstance(failure, KvmError):
        return failure
    return error(Reason.DEADLINE, f"{method.rpartition('/')[2]} did not finish in time", method=method)
