"""KvmService: opens and closes descriptors, and forwards calls on them to their workers."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from kvmd.direct import Direct
from kvmd.errors import KvmError, Reason
from kvmd.front.peer import own_start_time
from kvmd.handles.table import Descriptor
from kvmd.images.base import Kind, Progress, unheard
from kvmd.rpc.calls import CALLS, Call
from kvmd.rpc.interceptor import Context, Handler, caller
from kvmd.rpc.validate import parse
from kvmd.sessions import Change, Sessions
from kvmd.v1 import error_pb2, memory_pb2
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.worker.protocol import PROGRESS_PAUSE

NAME = "kvmd.v1.KvmService"
POSIX2_LINE_MAX = 2048
"""The size of libkvm's errbuf, closing NUL included."""


class KvmService:
    """The servicer. Its methods take and give bytes: what a worker says is passed on as it is."""

    def __init__(self, sessions: Sessions, direct: Direct) -> None:
        self._sessions, self._direct = sessions, direct
        self._process = pb.DaemonProcess(pid=os.getpid(), start_time=own_start_time() or 0)

    async def open(self, raw: bytes, context: Context) -> bytes:
        """Open an image; a failure is the status."""
        descriptor = await self._open(parse(pb.OpenRequest, raw))
        return self._opened(pb.OpenResponse, descriptor)

    async def open_watched(self, raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
        """Open an image, telling how far that has come."""
        request, told = parse(pb.OpenRequest, raw), (0, 0)
        progress: tuple[int, int] = told

        def heard(done: int, of: int) -> None:
            nonlocal progress
            progress = done, of

        opening = asyncio.ensure_future(self._open(request, heard))
        opening.add_done_callback(lambda task: task.cancelled() or task.exception())  # the caller may be gone by then
        try:
            while not (await asyncio.wait({opening}, timeout=PROGRESS_PAUSE))[0]:
                if progress != told:
                    told = progress
                    yield pb.OpenWatchedResponse(done_bytes=told[0], total_bytes=told[1]).SerializeToString()
            opened = pb.OpenResponse.FromString(self._opened(pb.OpenResponse, opening.result()))
            yield pb.OpenWatchedResponse(opened=opened).SerializeToString()
        finally:
            opening.cancel()

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

    def _opened(self, kind: type[pb.OpenResponse | pb.OpenFilesResponse], descriptor: Descriptor) -> bytes:
        image = descriptor.entry.image
        answer = kind(
            daemon=self._process,
            descriptor=descriptor.id,
            kernel_name=image.kernel_name,
            foreign=image.foreign,
            dump=descriptor.kind is Kind.DUMP,
        )
        return answer.SerializeToString()

    async def _open(self, request: pb.OpenRequest, progress: Progress = unheard) -> Descriptor:
        def given(name: str) -> Any:
            return getattr(request, name) if request.HasField(name) else None

        return await self._sessions.open(
            caller.get(), execfile=given("execfile"), corefile=given("corefile"),
            swapfiles=tuple(request.swapfiles), flags=request.flags, dump_offset=given("dump_offset"),
            progress=progress,
        )  # fmt: skip

    async def close(self, raw: bytes, context: Context) -> bytes:
        """Close a descriptor."""
        self._sessions.close(caller.get(), parse(pb.CloseRequest, raw).descriptor)
        return pb.CloseResponse().SerializeToString()

    async def get_ticket(self, raw: bytes, context: Context) -> bytes:
        """Let a client read directly."""
        request = parse(pb.GetTicketRequest, raw)
        ticket = self._direct.ticket(caller.get(), request.descriptor)
        return pb.GetTicketResponse(ticket=ticket, socket=self._direct.door).SerializeToString()

    def _admit(self, raw: bytes, call: Call) -> tuple[Descriptor, Callable[[int], None]]:
        """The descriptor of a request, and what counts the bytes of its answers."""
        request: Any = parse(call.request, raw)
        descriptor = self._sessions.admit(caller.get(), request.descriptor, call.verbs(request))
        if call.ranges is None:
            return descriptor, lambda count: None
        ranges = call.ranges(request)
        return descriptor, lambda count: self._sessions.reads(caller.get(), descriptor, count, ranges)

    async def write(self, raw: bytes, context: Context) -> bytes:
        """Write memory: on the record first, with what is written where."""
        request = parse(memory_pb2.WriteRequest, raw)
        descriptor = self._sessions.admit(caller.get(), request.descriptor, ("write",))
        worker = descriptor.entry.worker
        old = (await worker.call("Digest", raw))[: hashlib.sha256().digest_size].hex()
        new = hashlib.sha256(request.data).hexdigest()
        with self._sessions.writes(caller.get(), descriptor, Change(request.address, len(request.data), old, new)):
            return await worker.call("Write", raw)

    def _unary(self, method: str, call: Call) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def forward(raw: bytes, context: Context) -> bytes:
            descriptor, count = self._admit(raw, call)
            answer = await descriptor.entry.worker.call(method, raw)
            count(len(answer))
            return answer

        return forward

    def _stream(self, method: str, call: Call) -> Callable[[bytes, Context], AsyncGenerator[bytes, None]]:
        async def forward(raw: bytes, context: Context) -> AsyncGenerator[bytes, None]:
            descriptor, count = self._admit(raw, call)
            async with aclosing(descriptor.entry.worker.stream(method, raw)) as answers:
                async for answer in answers:
                    count(len(answer))
                    yield answer

        return forward

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods, for grpc's server; requests and answers are not (de)serialized there."""
        methods: dict[str, Handler] = {
            "Open": grpc.unary_unary_rpc_method_handler(self.open),
            "OpenWatched": grpc.unary_stream_rpc_method_handler(self.open_watched),
            "OpenFiles": grpc.unary_unary_rpc_method_handler(self.open_files),
            "Close": grpc.unary_unary_rpc_method_handler(self.close),
            "GetTicket": grpc.unary_unary_rpc_method_handler(self.get_ticket),
            "Write": grpc.unary_unary_rpc_method_handler(self.write),
        }
        for name, call in CALLS.items():
            if call.streams:
                methods[name] = grpc.unary_stream_rpc_method_handler(self._stream(name, call))
            else:
                methods[name] = grpc.unary_unary_rpc_method_handler(self._unary(name, call))
        return grpc.method_handlers_generic_handler(NAME, methods)
