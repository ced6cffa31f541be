"""Calls over gRPC. The only module of libkvm, with ``status``, that imports grpc."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import grpc

from libkvm.calls import A, Call, Q
from libkvm.errors import KvmError, Reason, error
from libkvm.transports.status import from_rpc_error

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


class GrpcTransport:
    """A gRPC channel with one connection of its own.

    :ivar target: where the daemon is, as the user wrote it.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._owner = os.getpid()
        self._closed = False
        self._channel = grpc.insecure_channel(target, options=OPTIONS)
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
            raise from_rpc_error(failure, call.name, self.target) from None
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
            raise from_rpc_error(failure, call.name, self.target) from None
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

    def _unusable(self) -> KvmError:
        if self._owner != os.getpid():
            return error(
                Reason.NO_SUCH_DESCRIPTOR,
                f"this Client of {self.target} belongs to process {self._owner}; a forked child must connect anew",
            )
        return error(Reason.NO_SUCH_DESCRIPTOR, f"this Client of {self.target} is closed; connect again")
