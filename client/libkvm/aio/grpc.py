# ruff: noqa: ASYNC109 - deadlines are the calls' own, as in the synchronous transport
"""Calls over gRPC from an event loop: the one part of libkvm.aio, with what picks it, that is written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import grpc.aio

from libkvm.calls import A, Call, Q
from libkvm.errors import KvmError, Reason, daemon_ended, error
from libkvm.transports.grpc import OPTIONS, REMOTE_OPTIONS, Line, secure
from libkvm.transports.status import from_rpc_error, lost
from libkvm.transports.target import TlsFiles
from libkvm.transports.tls import diagnose


class GrpcTransport:
    """A gRPC channel at a time, with one connection of its own, for one event loop.

    :ivar target: where the daemon is, as the user wrote it.
    """

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        self.target = target
        self._tls = tls
        self._credentials = None if tls is None else secure(tls)
        self._owner = os.getpid()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._line: Line | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    async def unary(self, call: Call[Q, A], request: Q, timeout: float) -> A:
        """Make a call that has one answer; cancelling the task cancels it."""
        line, until = self._usable(), time.monotonic() + timeout
        try:
            answer: A = await line.method(call, "unary_unary")(request, timeout=timeout)
        except grpc.RpcError as failure:
            raise await self._typed(failure, call.name) from None
        except asyncio.CancelledError:
            if call.bound or not self._cut(line) or self._closed:
                self._check_cancelled(line, call)
                raise
            return await self.unary(call, request, until - time.monotonic())
        return answer

    async def stream(self, call: Call[Q, A], request: Q, timeout: float) -> AsyncGenerator[A]:
        """Make a call that has many answers; closing the iterator, or cancelling the task, cancels it."""
        line = self._usable()
        answers = line.method(call, "unary_stream")(request, timeout=timeout)
        try:
            async for answer in answers:
                yield answer
        except grpc.RpcError as failure:
            raise await self._typed(failure, call.name) from None
        except asyncio.CancelledError:
            self._check_cancelled(line, call)
            raise
        finally:
            answers.cancel()

    def renew(self) -> None:
        """Leave a connection whose daemon has ended; any call on it fails, and those that open something go on anew."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            task = asyncio.ensure_future(line.channel.close())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if not self._closed:
            self._closed = True
            # In a child of fork(2) the connection is still the parent's.
            if self._line is not None and self._owner == os.getpid():
                await self._line.channel.close()

    def _cut(self, line: Line) -> bool:
        """Tell the end of a channel, which cancels its calls as if the task had been, from the end of the task."""
        task = asyncio.current_task()
        return (self._closed or line is not self._line) and (task is None or not task.cancelling())

    def _check_cancelled(self, line: Line, call: Call[Q, A]) -> None:
        if not self._cut(line):
            return
        if self._closed:
            raise error(Reason.CANCELLED, f"{call.name} on {self.target} was cancelled") from None
        raise daemon_ended(self.target) from None

    def _usable(self) -> Line:
        loop = asyncio.get_running_loop()
        if self._closed or self._owner != os.getpid() or self._loop not in {None, loop}:
            raise self._unusable()
        if self._line is None:
            self._loop = loop
            self._line = Line(self._connect())
        return self._line

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
