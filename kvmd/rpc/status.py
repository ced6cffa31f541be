"""KvmError to gRPC status: the daemon's half of the mapping; libkvm.transports has the other."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kvmd.errors import TABLE, KvmError

DOMAIN = "kvmd"
# Headers are limited to about 8 KiB, and an error too large for them would be lost.
_MOST_TEXT = 1024


def to_status(failure: KvmError) -> status_pb2.Status:
    """The failure as google.rpc.Status with one ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=failure.reason.value, domain=DOMAIN)
    for key, value in failure.metadata.items():
        info.metadata[key] = _clip(value)
    detail = any_pb2.Any()
    detail.Pack(info)
    code: int = getattr(grpc.StatusCode, TABLE[failure.reason].status).value[0]
    return status_pb2.Status(code=code, message=_clip(failure.message), details=[detail])


def _clip(text: str) -> str:
    """``text`` without what UTF-8 can't hold, cut to a size that headers can."""
    return text.encode("utf-8", "backslashreplace")[:_MOST_TEXT].decode("utf-8", "ignore")


async def abort(context: grpc.aio.ServicerContext[object, object], failure: KvmError) -> NoReturn:
    """End the call with the failure's status."""
    status = rpc_status.to_status(to_status(failure))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort always raises")
