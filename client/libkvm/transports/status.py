"""gRPC's statuses to libkvm's exceptions: by ErrorInfo's reason, never by text."""

from __future__ import annotations

import os
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from libkvm.errors import KvmError, Reason, error, from_wire

_DOMAIN = "kvmd"
_DETAILS = "grpc-status-details-bin"  # where gRPC puts the serialized google.rpc.Status


def from_rpc_error(failure: Any, name: str, target: str) -> KvmError:
    """Rebuild the exception that a failed call stands for.

    :param failure: the grpc.RpcError, which is also a grpc.Call.
    :param name: the method's name.
    :param target: where the daemon is.
    """
    details = _error_info(failure)
    return from_wire(*details) if details else _bare(failure, name, target)


def lost(failure: Any) -> bool:
    """Tell whether a call failed for want of a connection, rather than by the daemon's word."""
    return failure.code() is grpc.StatusCode.UNAVAILABLE and _error_info(failure) is None


def _error_info(failure: Any) -> tuple[str, str, dict[str, str]] | None:
    for key, value in failure.trailing_metadata() or ():
        if key != _DETAILS:
            continue
        try:
            status = status_pb2.Status.FromString(value)
            for detail in status.details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == _DOMAIN:
                    return info.reason, status.message, dict(info.metadata)
        except DecodeError:
            break
    return None


def _bare(failure: Any, name: str, target: str) -> KvmError:
    """Name a status that came from gRPC itself and not from kvmd."""
    code, details = failure.code(), failure.details() or ""
    facts = {"target": target, "call": name}
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return error(Reason.UNREACHABLE, f"no kvmd answers on {target}: {_why(target, details)}", **facts)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return error(Reason.DEADLINE, f"{name} on {target}: the deadline passed before the answer came", **facts)
        case grpc.StatusCode.CANCELLED:
            return error(Reason.CANCELLED, f"{name} on {target} was cancelled", **facts)
        case grpc.StatusCode.UNIMPLEMENTED:
            return error(Reason.UNSUPPORTED, f"the kvmd on {target} is older than this call: {name}", **facts)
        case _:
            return error(Reason.INTERNAL, f"{name} on {target}: {code.name}: {details}", **facts)


def _why(target: str, details: str) -> str:
    path = target.removeprefix("unix:")
    if path == target:
        return details
    if not os.path.exists(path):
        return "there is no such socket; start kvmd, or name another target (KVMD_TARGET)"
    if not os.access(path, os.R_OK | os.W_OK):
        return "you may not use this socket; ask its administrator"
    return f"{details}; start kvmd again if it has stopped"
