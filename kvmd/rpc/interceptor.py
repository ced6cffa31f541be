"""What every call goes through: who is it, how long may it take, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, TypeAlias

import grpc
from google.rpc import status_pb2

from kvmd.errors import KvmError, Reason, error
from kvmd.front.peers import Connection, Peers
from kvmd.rpc.status import abort, to_status

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Call: TypeAlias = Callable[[AsyncIterator[Any], Context], Awaitable[None]]

caller: contextvars.ContextVar[Connection] = contextvars.ContextVar("caller")
"""The connection whose call is being handled."""


def _internal(method: str) -> KvmError:
    """An error that tells the client no more than where the log explains it."""
    incident = secrets.token_hex(4)
    log.exception("incident %s in %s", incident, method)
    message = f"internal error (incident {incident}); the daemon's log explains it"
    return error(Reason.INTERNAL, message, incident=incident)


class Guard(grpc.aio.ServerInterceptor):
    """Wraps every handler of the server.

    To grpc all calls are streams both ways, which on the wire is the same: so a request that never comes and an
    answer that nobody takes count among the caller's calls, and their time passes, too.
    """

    def __init__(self, peers: Peers, *, call_deadline: float, stream_deadline: float, most_per_owner: int) -> None:
        """Guard the calls of these peers.

        :param call_deadline: the longest that a unary call may take, in seconds.
        :param stream_deadline: the longest that a streaming call may take.
        :param most_per_owner: the calls of one identity under way at once.
        """
        self._peers = peers
        self._deadlines = {False: call_deadline, True: stream_deadline}
        self._most_per_owner = most_per_owner
        self._under_way = Counter[str]()

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
    def _entered(self, context: Context) -> Iterator[None]:
        """Know the caller, and count the call as one of its calls."""
        connection = self._peers.lookup(context.peer())
        if connection is None:
            raise error(Reason.NO_PEER_IDENTITY, "this connection did not come through the daemon's socket")
        owner = connection.peer.identity
        if self._under_way[owner] >= self._most_per_owner:
            message = f"{self._most_per_owner} calls of {owner} are under way already (limits.calls_per_uid)"
            raise error(Reason.CALL_LIMIT, message, limit=self._most_per_owner)
        caller.set(connection)
        self._under_way[owner] += 1
        try:
            yield
        finally:
            self._under_way[owner] -= 1
            if not self._under_way[owner]:
                del self._under_way[owner]

    def _timeout(self, context: Context, streams: bool) -> asyncio.Timeout:
        left, most = context.time_remaining(), self._deadlines[streams]
        return asyncio.timeout(most if left is None else min(left, most))

    def _guarded(self, handler: Handler, method: str) -> Call:
        async def call(requests: AsyncIterator[Any], context: Context) -> None:
            # Nothing of a failure but its status is left when the call ends: grpc keeps the abort's traceback and
            # with it all frames below, and memory by the mebibyte that they hold, until garbage is collected.
            status = await self._run(handler, requests, context, method)
            if status is not None:
                await abort(context, status)

        return call

    async def _run(
        self, handler: Handler, requests: AsyncIterator[Any], context: Context, method: str
    ) -> status_pb2.Status | None:
        """Handle a call; a failure is the answer."""
        try:
            with self._entered(context):
                async with self._timeout(context, handler.response_streaming):
                    await _handle(handler, requests, context)
        except (KvmError, TimeoutError) as failure:
            return to_status(_typed(failure, method))
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except grpc.aio.InternalError:
            raise asyncio.CancelledError from None  # the client went while it was written to
        except Exception:  # noqa: BLE001 - nothing may leak to the client
            return to_status(_internal(method))
        return None


async def _handle(handler: Handler, requests: AsyncIterator[Any], context: Context) -> None:
    """Run a handler of whichever kind and write what it answers."""
    request = requests if handler.request_streaming else await _only(context)
    kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
    answers = getattr(handler, kind)(request, context)
    if not isinstance(answers, AsyncGenerator):
        answer = await answers
        if not handler.response_streaming:  # else it has written by itself
            await context.write(answer)
        return
    # Closed here and not by the garbage collector: what it holds, a place in the worker, goes with the call.
    async with aclosing(answers):
        async for answer in answers:
            await context.write(answer)


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


async def _only(context: Context) -> Any:
    # Not by iteration: grpc's iterator, left before its end, stays until garbage is collected, and the call with it.
    request = await context.read()
    if request is grpc.aio.EOF:
        raise error(Reason.BAD_ARGUMENT, "the call came without its request message")
    return request


def _typed(failure: KvmError | TimeoutError, method: str) -> KvmError:
    if isinstance(failure, KvmError):
        return failure
    return error(Reason.DEADLINE, f"{method.rpartition('/')[2]} did not finish in time", method=method)
