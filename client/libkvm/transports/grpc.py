"""Calls over gRPC. The only module of libkvm, with ``status``, that imports grpc."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import grpc

from libkvm.calls import A, Call, Q
from libkvm.errors import KvmError, Reason, error
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


class GrpcTransport:
    """A gRPC channel with one connection of its own.

    :ivar target: where the daemon is, as the user wrote it.
    """

    def __init__(self, target: str, tls: TlsFiles | None = None) -> None:
        self.target = target
        self._tls = tls
        self._owner = os.getpid()
        self._closed = False
        if tls is None:
            self._channel = grpc.insecure_channel(target, options=OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, secure(tls), options=REMOTE_OPTIONS)
        self._methods: dict[str, Any] = {}

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def unary(self, call: Call[Q, A], request: Q, timeout: float) -> A:
        """Make a call that has one answer."""
        method = self._method(call, self._channel.unary_unary)
        try:
            answer: A = method(request, timeout=timeout)
        except grpc.RpcError as failure:
            raise self._typed(failure, call.name) from None
        except ValueError:  # how grpc says that the channel was closed meanwhile
            raise self._unusable() from None
        return answer

    def stream(self, call: Call[Q, A], request: Q, timeout: float) -> Generator[A]:
        """Make a call that has many answers; closing the iterator cancels it."""
        method = self._method(call, self._channel.unary_stream)
        try:
            answers = method(request, timeout=timeout)
        except ValueError:
            raise self._unusable() from None
        try:
            yield from answers
        except grpc.RpcError as failure:
            raise self._typed(failure, call.name) from None
        finally:
            answers.cancel()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if not self._closed:
            self._closed = True
            # In a child of fork(2) the connection is still the parent's.
            if self._owner == os.getpid():
                self._channel.close()

    def _method(self, call: Call[Q, A], kind: Any) -> Any:
        if self._closed or self._owner != os.getpid():
            raise self._unusable()
        method = self._methods.get(call.name)
        if method is None:
            method = self._methods[call.name] = kind(
                call.path,
                request_serializer=call.request.SerializeToString,
                response_deserializer=call.answer.FromString,
            )
        return method

    def _typed(self, failure: Any, name: str) -> KvmError:
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
