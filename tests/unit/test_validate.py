"""Requests against the bounds of the .proto files."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.rpc.calls import CALLS
from kvmd.rpc.validate import parse
from kvmd.v1 import bounds_pb2, memory_pb2, symbol_pb2
from kvmd.v1 import kvm_service_pb2 as pb

REQUESTS = [
    pb.OpenRequest,
    pb.OpenFilesRequest,
    pb.CloseRequest,
    pb.GetTicketRequest,
    *(call.request for call in CALLS.values()),
]


@pytest.mark.parametrize(
    ("request_", "field", "limit"),
    [
        (pb.CloseRequest(descriptor="x" * 65), "CloseRequest.descriptor", "64"),
        (pb.OpenRequest(corefile="é" * 2049), "OpenRequest.corefile", "4096"),
        (pb.OpenRequest(swapfiles=[""] * 33), "OpenRequest.swapfiles", "32"),
        (pb.OpenRequest(swapfiles=["s" * 4097]), "OpenRequest.swapfiles", "4096"),
        (memory_pb2.ReadRequest(length=(1 << 20) + 1), "ReadRequest.length", "1048576"),
        (memory_pb2.ReadStreamRequest(length=1 << 63), "ReadStreamRequest.length", str(1 << 40)),
        (memory_pb2.ReadVRequest(ranges=[memory_pb2.Range(length=1 << 21)]), "Range.length", "1048576"),
        (symbol_pb2.NlistRequest(names=["a"] * 4097), "NlistRequest.names", "4096"),
        (pb.OpenFilesRequest(open=pb.OpenRequest(execfile="e" * 5000)), "OpenRequest.execfile", "4096"),
    ],
)
def test_field_over_its_bound_is_named(request_: object, field: str, limit: str) -> None:
    with pytest.raises(KvmError) as wrong:
        parse(type(request_), request_.SerializeToString())
    assert wrong.value.reason is Reason.FIELD_OUT_OF_BOUNDS
    assert wrong.value.metadata["field"] == f"kvmd.v1.{field}"
    assert wrong.value.metadata["limit"] == limit


def test_fields_at_their_bounds_pass() -> None:
    at = pb.OpenRequest(corefile="c" * 4096, swapfiles=["s" * 4096] * 32, flags=2**32 - 1)
    assert parse(pb.OpenRequest, at.SerializeToString()) == at


def _fields(kind: object, seen: set[str]) -> list[FieldDescriptor]:
    if kind.full_name in seen:
        return []
    seen.add(kind.full_name)
    inner = [field for field in kind.fields if field.message_type for field in _fields(field.message_type, seen)]
    return [*kind.fields, *inner]


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_every_field_of_unbounded_type_has_a_bound(kind: type) -> None:
    """A string, bytes or repeated field without one would be a hole."""
    for field in _fields(kind.DESCRIPTOR, set()):
        options = field.GetOptions().Extensions
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            assert options[bounds_pb2.max_bytes], field.full_name
        if field.is_repeated:
            assert options[bounds_pb2.max_items], field.full_name
        if "length" in field.name:
            assert options[bounds_pb2.max_value], field.full_name


@given(st.binary(max_size=200), st.sampled_from(REQUESTS))
def test_no_bytes_escape_as_another_error(raw: bytes, kind: type) -> None:
    with contextlib.suppress(KvmError):
        assert isinstance(parse(kind, raw), kind)


def test_pool_holds_the_wire() -> None:
    """Every method of the service but those that the servicer handles itself is in the table of calls, and no other."""
    service = descriptor_pool.Default().FindServiceByName("kvmd.v1.KvmService")
    methods = {method.name: method for method in service.methods}
    assert set(methods) == {"Open", "OpenWatched", "OpenFiles", "Close", "GetTicket", "Write", *CALLS}
    for name, call in CALLS.items():
        assert methods[name].input_type.full_name == call.request.DESCRIPTOR.full_name
        assert methods[name].server_streaming == call.streams
