"""Requests that cost more to parse than they may hold are not parsed."""

from __future__ import annotations

import time

import pytest
from google.protobuf.message import Message

from kvmd.errors import KvmError, Reason
from kvmd.rpc.calls import CALLS
from kvmd.rpc.validate import _most_raw, parse
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import memory_pb2, symbol_pb2

KINDS = [pb.OpenRequest, pb.OpenFilesRequest, pb.CloseRequest, *(call.request for call in CALLS.values())]
LARGEST = [
    symbol_pb2.NlistRequest(descriptor="x" * 64, names=["n" * 512] * 4096),
    memory_pb2.ReadVRequest(
        descriptor="x" * 64,
        ranges=[memory_pb2.Range(address=(1 << 64) - 1, length=1 << 20, space=2)] * 16384,
    ),
    pb.OpenRequest(execfile="e" * 4096, corefile="c" * 4096, swapfiles=["s" * 4096] * 32, flags=0xFFFFFFFF),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_request_is_bounded(kind: type[Message]) -> None:
    """By what stands in the .proto files; and the largest fits what grpc lets in."""
    assert _most_raw(kind.DESCRIPTOR) <= 3 << 20


@pytest.mark.parametrize("request_", LARGEST, ids=lambda request: type(request).__name__)
def test_largest_that_is_allowed_is_parsed(request_: Message) -> None:
    assert parse(type(request_), request_.SerializeToString()) == request_


@pytest.mark.parametrize(
    ("kind", "item"),
    [(pb.OpenRequest, b"\x1a\0"), (memory_pb2.ReadVRequest, b"\x12\0"), (symbol_pb2.NlistRequest, b"\x12\0")],
)
def test_a_million_empty_items_are_not_counted(kind: type[Message], item: bytes) -> None:
    raw = item * (3 << 19)
    began = time.monotonic()
    with pytest.raises(KvmError, match="at most") as failure:
        parse(kind, raw)
    assert failure.value.reason is Reason.FIELD_OUT_OF_BOUNDS
    assert failure.value.metadata["field"] == kind.DESCRIPTOR.full_name
    assert time.monotonic() - began < 0.02
