# ruff: noqa: ASYNC109 - deadlines are the calls' own, as in the synchronous transport
"""Calls over gRPC from an event loop: the one part of libkvm.aio, with what picks it, that is written by hand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio

from libkvm.calls import A, Call, Q
from libkvm.errors import KvmError, Reason, error
from libkvm.transports.grpc import OPTIONS, REMOTE_OPTIONS, secure
from libkvm.transports.status import from_rpc_error, lost
from libkvm.transports.target import TlsFiles
from libkvm.transports.tls import diagnose


class GrpcTransport:
    """A gRPC channel with one connection of its own, for one event loop.

    :ivar target: where the daemon is, as the user wrote it.
    """

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        self.target = target
        self._tls = tls
        self._credentials = None if tls is None else secure(tls)
        self._owner = os.getpid()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: Any = None
        self._methods: dict[str, Any] = {}

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    async def unary(self, call: Call[Q, A], request: Q, timeout: float) -> A:
        """Make a call that has one answer; cancelling the task cancels it."""
        method = self._method(call, "unary_unary")
        try:
            answer: A = await method(request, timeout=timeout)
        except grpc.RpcError as failure:
            raise await self._typed(failure, call.name) from None
        except asyncio.CancelledError:
            self._check_cancelled(call)
            raise
        return answer

    async def stream(self, call: Call[Q, A], request: Q, timeout: float) -> AsyncGenerator[A]:
        """Make a call that has many answers; closing the iterator, or cancelling the task, cancels it."""
        answers = self._method(call, "unary_stream")(request, timeout=timeout)
        try:
            async for answer in answers:
                yield answer
        except grpc.RpcError as failure:
            raise await self._typed(failure, call.name) from None
        except asyncio.CancelledError:
            self._check_cancelled(call)
            raise
        finally:
            answers.cancel()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if not self._closed:
            self._closed = True
            # In a child of fork(2) the connection is still the parent's.
            if self._channel is not None and self._owner == os.getpid():
                await self._channel.close()

    def _check_cancelled(self, call: Call[Q, A]) -> None:
        """Tell the end of the channel, which cancels its calls as if the task had been, from the end of the task."""
        task = asyncio.current_task()
        if self._closed and (task is None or not task.cancelling()):
            raise error(Reason.CANCELLED, f"{call.name} on {self.target} was cancelled") from None

    def _method(self, call: Call[Q, A], kind: str) -> Any:
        loop = asyncio.get_running_loop()
        if self._closed or self._owner != os.getpid() or self._loop not in {None, loop}:
            raise self._unusable()
        if self._channel is None:
            self._loop = loop
            self._channel = self._connect()
        method = self._methods.get(call.name)
        if method is None:
            method = self._methods[call.name] = getattr(self._channel, kind)(
                call.path,
                request_serializer=call.request.SerializeToString,
                response_deserializer=call.answer.FromString,
            )
        return method

    def _connect(self) -> Any:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self.target, options=OPTIONS)
        return grpc.aio.secure_channel(self.target, self._credentials, options=REMOTE_OPTIONS)

    async def _typed(self, failure: Any, name: str) -> KvmError:
        if self._tls is not None and lost(failure):
            return await asyncio.to_thread(diagnose, self.target, self._tls, failure.details() or "")
        return from_rpc_error(failure, name, self.target)

    def _unusable(self) -> KvmError:
        if self._closed:
            return error(Reason.NO_SUCH_DESCRIPTOR, f"this Client of {self.target} is closed; connect again")
        owner = "event loop" if self._owner == os.getpid() else "process"
        return error(
            Reason.NO_SUCH_DESCRIPTOR, f"this Client of {self.target} belongs to another {owner}; connect anew"
        )
