"""KvmError to gRPC status: the daemon's half of the mapping; libkvm.transports has the other."""

from __future__ import annotations

import asyncio
from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kvmd.errors import TABLE, KvmError

DOMAIN = "kvmd"
# Trailers of more than 8 KiB may be lost, and the error with them (gRPC's soft limit). The text is in them twice, once
# in the details and once, of other bytes than ASCII three for each, by itself; the details are base64, 4 bytes for 3.
_MOST_TEXT = 1024
_MOST_WORDS = 2400


def to_status(failure: KvmError, request: str | None = None) -> status_pb2.Status:
    """The failure as google.rpc.Status with one ErrorInfo, which names the request as the daemon's log does."""
    info = error_details_pb2.ErrorInfo(reason=failure.reason.value, domain=DOMAIN)
    left = _MOST_WORDS
    words = failure.metadata if request is None else {"request": request, **failure.metadata}
    for key, value in words.items():
        word = _clip(value)
        if (size := len(key.encode()) + len(word.encode())) <= left:
            info.metadata[key] = word
            left -= size
    detail = any_pb2.Any()
    detail.Pack(info)
    code: int = getattr(grpc.StatusCode, TABLE[failure.reason].status).value[0]
    return status_pb2.Status(code=code, message=_clip(failure.message), details=[detail])


def _clip(text: str) -> str:
    """``text`` without what UTF-8 can't hold, cut to a size that headers can."""
    return text.encode("utf-8", "backslashreplace")[:_MOST_TEXT].decode("utf-8", "ignore")


async def abort(context: grpc.aio.ServicerContext[object, object], status: status_pb2.Status) -> NoReturn:
    """End the call with a status."""
    ending = rpc_status.to_status(status)
    try:
        await context.abort(ending.code, ending.details, ending.trailing_metadata)
    except grpc.aio.InternalError:  # the client has gone meanwhile
        raise asyncio.CancelledError from None
    raise AssertionError("abort always raises")
