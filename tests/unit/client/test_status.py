"""Statuses that did not come from kvmd, or not as they should."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from kvmd.errors import KvmError, Reason
from libkvm.transports.status import from_rpc_error


class Failure:
    """What grpc raises, as far as it is looked at."""

    def __init__(self, code, details="", trailing=()):
        self.code = lambda: code
        self.details = lambda: details
        self.trailing_metadata = lambda: trailing


def packed(domain: str, reason: str, **metadata: str) -> bytes:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata=metadata))
    return status_pb2.Status(code=5, message="why", details=[detail]).SerializeToString()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, Reason.UNREACHABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Reason.DEADLINE),
        (grpc.StatusCode.CANCELLED, Reason.CANCELLED),
        (grpc.StatusCode.UNIMPLEMENTED, Reason.UNSUPPORTED),
        (grpc.StatusCode.UNKNOWN, Reason.INTERNAL),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.INTERNAL),
    ],
)
def test_bare_statuses_name_the_target(code, reason):
    failure = from_rpc_error(Failure(code, "text"), "Read", "unix:/x")

    assert failure.reason is reason
    assert failure.metadata == {"target": "unix:/x", "call": "Read"}
    assert "unix:/x" in failure.message


def test_the_reason_decides_and_not_the_code():
    trailing = (("a", "b"), ("grpc-status-details-bin", packed("kvmd", "NOT_MAPPED", address="0x10")))

    failure = from_rpc_error(Failure(grpc.StatusCode.UNKNOWN, "other", trailing), "Read", "unix:/x")

    assert (failure.reason, failure.message, failure.address) == (Reason.NOT_MAPPED, "why", 16)


def test_a_reason_of_a_newer_daemon_is_a_plain_error():
    trailing = (("grpc-status-details-bin", packed("kvmd", "SOMETHING_NEW")),)

    failure = from_rpc_error(Failure(grpc.StatusCode.UNKNOWN, "", trailing), "Read", "unix:/x")

    assert type(failure) is KvmError
    assert failure.metadata["reason"] == "SOMETHING_NEW"


@pytest.mark.parametrize("value", [b"\xff\xff", b"", packed("other.domain", "NOT_MAPPED")])
def test_details_that_are_not_kvmds_are_left_alone(value):
    trailing = (("grpc-status-details-bin", value),)

    failure = from_rpc_error(Failure(grpc.StatusCode.CANCELLED, "", trailing), "Read", "unix:/x")

    assert failure.reason is Reason.CANCELLED


def test_unreachable_tells_why(tmp_path):
    socket = tmp_path / "s"
    gone = from_rpc_error(Failure(grpc.StatusCode.UNAVAILABLE, "refused"), "Open", f"unix:{socket}")
    socket.touch()
    there = from_rpc_error(Failure(grpc.StatusCode.UNAVAILABLE, "refused"), "Open", f"unix:{socket}")
    remote = from_rpc_error(Failure(grpc.StatusCode.UNAVAILABLE, "refused"), "Open", "dns:///x:1")

    assert "no such socket" in gone.message
    assert "refused; start kvmd again" in there.message
    assert remote.message.endswith("refused")
