"""KvmService: opens and closes descriptors, and forwards calls on them to their workers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from kvmd.errors import KvmError, Reason
from kvmd.handles.table import Descriptor
from kvmd.rpc.calls import CALLS, Call
from kvmd.rpc.interceptor import Context, Handler, caller
from kvmd.rpc.validate import parse
from kvmd.sessions import Sessions
from kvmd.v1 import error_pb2, memory_pb2
from kvmd.v1 import kvm_service_pb2 as pb

NAME = "kvmd.v1.KvmService"
POSIX2_LINE_MAX = 2048
"""The size of libkvm's errbuf, closing NUL included."""


class KvmService:
    """The servicer. Its methods take and give bytes: what a worker says is passed on as it is."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def open(self, raw: bytes, context: Context) -> bytes:
        """Open an image; a failure is the status."""
        descriptor = await self._open(parse(pb.OpenRequest, raw))
        return self._opened(pb.OpenResponse, descriptor)

    async def open_files(self, raw: bytes, context: Context) -> bytes:
        """Open an image; a failure is in the answer."""
        try:
            descriptor = await self._open(parse(pb.OpenFilesRequest, raw).open)
        except KvmError as failure:
            if failure.reason is Reason.INTERNAL:
                raise
            detail = error_pb2.Error(reason=failure.reason.value, message=failure.message, metadata=failure.metadata)
            text = failure.text.encode("utf-8", "backslashreplace")[: POSIX2_LINE_MAX - 1].decode("utf-8", "ignore")
            return pb.OpenFilesResponse(errbuf=text, error=detail).SerializeToString()
        return self._opened(pb.OpenFilesResponse, descriptor)

    @staticmethod
    def _opened(kind: type[pb.OpenResponse | pb.OpenFilesResponse], descriptor: Descriptor) -> bytes:
        return kind(descriptor=descriptor.id, kernel_name=descriptor.entry.kernel_name).SerializeToString()

    async def _open(self, request: pb.OpenRequest) -> Descriptor:
        def given(name: str) -> str | None:
            return getattr(request, name) if request.HasField(name) else None

        return await self._sessions.open(
            caller.get(), execfile=given("execfile"), corefile=given("corefile"),
            swapfiles=tuple(request.swapfiles), flags=request.flags,
        )  # fmt: skip

    async def close(self, raw: bytes, context: Context) -> bytes:
        """Close a descriptor."""
        self._sessions.close(caller.get(), parse(pb.CloseRequest, raw).descriptor)
        return pb.CloseResponse().SerializeToString()

    def _admit(self, raw: bytes, call: Call) -> Descriptor:
        request: Any = parse(call.request, raw)
        return self._sessions.admit(caller.get(), request.descriptor, call.verbs(request))

    async def write(self, raw: bytes, context: Context) -> bytes:
        """Write memory: on the record first, with what is written where."""
        request = parse(memory_pb2.WriteRequest, raw)
        descriptor = self._sessions.admit(caller.get(), request.descriptor, ("write",))
        self._sessions.writes(caller.get(), descriptor, request.address, len(request.data))
        return await descriptor.entry.worker.call("Write", raw)

    def _unary(self, method: str, call: Call) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def forward(raw: bytes, context: Context) -> bytes:
            return await self._admit(raw, call).entry.worker.call(method, raw)

        return forward

    def _stream(self, method: str, call: Call) -> Callable[[bytes, Context], AsyncGenerator[bytes, None]]:
        async def forward(raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
            async with aclosing(self._admit(raw, call).entry.worker.stream(method, raw)) as answers:
                async for answer in answers:
                    yield answer

        return forward

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods, for grpc's server; requests and answers are not (de)serialized there."""
        methods: dict[str, Handler] = {
            "Open": grpc.unary_unary_rpc_method_handler(self.open),
            "OpenFiles": grpc.unary_unary_rpc_method_handler(self.open_files),
            "Close": grpc.unary_unary_rpc_method_handler(self.close),
            "Write": grpc.unary_unary_rpc_method_handler(self.write),
        }
        for name, call in CALLS.items():
            if call.streams:
                methods[name] = grpc.unary_stream_rpc_method_handler(self._stream(name, call))
            else:
                methods[name] = grpc.unary_unary_rpc_method_handler(self._unary(name, call))
        return grpc.method_handlers_generic_handler(NAME, methods)
