"""Calls over gRPC. The only module of libkvm, with ``status``, that imports grpc."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from typing import Any

import grpc

from libkvm.calls import A, Call, Q
from libkvm.errors import KvmError, Reason, daemon_ended, error
from libkvm.transports.status import from_rpc_error, lost
from libkvm.transports.target import TlsFiles
from libkvm.transports.tls import contents, diagnose

OPTIONS = [
    # A descriptor lives as long as its connection: an idle client must keep its own ...
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    # ... no two Clients may share one ...
    ("grpc.use_local_subchannel_pool", 1),
    # ... and no retry may continue on another connection, where the descriptors are unknown.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 20 << 20),  # ReadV answers 16 MiB, and the frames around them
    ("grpc.max_send_message_length", 20 << 20),
    # A local daemon that restarts is back within a moment; gRPC's own back-off grows to 2 minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name, how long one attempt to connect may take: a busy daemon's handshake needs its time.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


REMOTE_OPTIONS = [
    *OPTIONS,
    # Whether the other host is still there; a descriptor's lease is a minute by default.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def secure(files: TlsFiles) -> grpc.ChannelCredentials:
    """Make gRPC's view of a client's certificates.

    :raises RequestError: they can't be used.
    """
    return grpc.ssl_channel_credentials(*contents(files))


class Line:
    """A channel with one connection of its own, and the methods that were called over it."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self._methods: dict[str, Any] = {}

    def method(self, call: Call[Q, A], kind: str) -> Any:
        """What makes a call; ``kind`` is the name of the channel's method that answers that."""
        method = self._methods.get(call.name)
        if method is None:
            method = self._methods[call.name] = getattr(self.channel, kind)(
                call.path,
                request_serializer=call.request.SerializeToString,
                response_deserializer=call.answer.FromString,
            )
        return method


class GrpcTransport:
    """A gRPC channel at a time, with one connection of its own.

    :ivar target: where the daemon is, as the user wrote it.
    """

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        self.target = target
        self._tls = tls
        self._credentials = None if tls is None else secure(tls)
        self._owner = os.getpid()
        self._closed = False
        self._line = self._connect()

    def _connect(self) -> Line:
        if self._credentials is None:
            return Line(grpc.insecure_channel(self.target, options=OPTIONS))
        return Line(grpc.secure_channel(self.target, self._credentials, options=REMOTE_OPTIONS))

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def unary(self, call: Call[Q, A], request: Q, timeout: float) -> A:
        """Make a call that has one answer."""
        line, until = self._usable(), time.monotonic() + timeout
        try:
            answer: A = line.method(call, "unary_unary")(request, timeout=timeout)
        except (grpc.RpcError, ValueError) as failure:
            if call.bound or not self._left(line, failure):
                raise self._failed(line, failure, call.name) from None
            return self.unary(call, request, until - time.monotonic())
        return answer

    def stream(self, call: Call[Q, A], request: Q, timeout: float) -> Generator[A]:
        """Make a call that has many answers; closing the iterator cancels it."""
        line = self._usable()
        try:
            answers = line.method(call, "unary_stream")(request, timeout=timeout)
        except ValueError as failure:
            raise self._failed(line, failure, call.name) from None
        try:
            yield from answers
        except grpc.RpcError as failure:
            raise self._failed(line, failure, call.name) from None
        finally:
            answers.cancel()

    def renew(self) -> None:
        """Leave a connection whose daemon has ended; any call on it fails, and those that open something go on anew."""
        line, self._line = self._line, self._connect()
        line.channel.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if not self._closed:
            self._closed = True
            # In a child of fork(2) the connection is still the parent's.
            if self._owner == os.getpid():
                self._line.channel.close()

    def _usable(self) -> Line:
        if self._closed or self._owner != os.getpid():
            raise self._unusable()
        return self._line

    def _left(self, line: Line, failure: Any) -> bool:
        """Whether it was :meth:`renew` that made a call fail."""
        cut = isinstance(failure, ValueError) or failure.code() is grpc.StatusCode.CANCELLED
        return cut and line is not self._line

    def _failed(self, line: Line, failure: Any, name: str) -> KvmError:
        if self._left(line, failure):
            return daemon_ended(self.target)
        if isinstance(failure, ValueError):  # how grpc says that the channel was closed meanwhile
            return self._unusable()
        if self._tls is not None and lost(failure):
            return diagnose(self.target, self._tls, failure.details() or "")
        return from_rpc_error(failure, name, self.target)

    def _unusable(self) -> KvmError:
        if self._owner != os.getpid():
            return error(
                Reason.NO_SUCH_DESCRIPTOR,
                f"this Client of {self.target} belongs to process {self._owner}; a forked child must connect anew",
            )
        return error(Reason.NO_SUCH_DESCRIPTOR, f"this Client of {self.target} is closed; connect again")
