"""Every field of every request, at and beyond its bounds, and bytes that are no request: a typed answer to each.

The fields come from the descriptors of the messages, so that a new call is attacked without a line here.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients import connecting_as, relayed
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.v1 import admin_pb2, bounds_pb2
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from procs import nothing_left, workers

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")

QEMU = fixture("qemu/vmcore.kdump")
CONFIG = """
[limits]
calls_per_second_per_uid = 20000
[[policy]]
subjects = ["uid:4003"]
images = ["dump:*"]
verbs = ["*"]
"""
METHODS = list(descriptor_pool.Default().FindServiceByName("kvmd.v1.KvmService").methods)
ADMIN = list(admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods)
KIND = FieldDescriptor
INTEGERS = {
    KIND.TYPE_INT32: 32, KIND.TYPE_SINT32: 32, KIND.TYPE_SFIXED32: 32, KIND.TYPE_UINT32: -32, KIND.TYPE_FIXED32: -32,
    KIND.TYPE_INT64: 64, KIND.TYPE_SINT64: 64, KIND.TYPE_SFIXED64: 64, KIND.TYPE_UINT64: -64, KIND.TYPE_FIXED64: -64,
}  # fmt: skip


def extremes(field: FieldDescriptor) -> Iterator[Any]:
    """Values of one field: the ends of its type, and what stands around its bound."""
    options = field.GetOptions().Extensions
    if field.type in INTEGERS:
        bits = INTEGERS[field.type]
        low, high = (0, (1 << -bits) - 1) if bits < 0 else (-(1 << bits - 1), (1 << bits - 1) - 1)
        bound = options[bounds_pb2.max_value]
        yield from {low, low + 1, 0, 1, high - 1, high, *((bound, bound + 1) if bound else ()), max(low, -1)}
    elif field.type == KIND.TYPE_ENUM:
        yield from (-(1 << 31), -1, 0, 99, (1 << 31) - 1)
    elif field.type == KIND.TYPE_STRING:
        yield from ("", "\0", "x" * options[bounds_pb2.max_bytes], "x" * (options[bounds_pb2.max_bytes] + 1), "\x1b[2J")
    elif field.type == KIND.TYPE_BYTES:
        yield from (b"", bytes(options[bounds_pb2.max_bytes] + 1))
    elif field.type == KIND.TYPE_BOOL:
        yield True


def messages(kind: Descriptor, base: dict[str, Any]) -> Iterator[Any]:
    """The message with one field after the other at its extremes; of messages within, likewise."""
    make = GetMessageClass(kind)
    known = {name: value for name, value in base.items() if name in kind.fields_by_name}
    for field in kind.fields:
        most = field.GetOptions().Extensions[bounds_pb2.max_items]
        values = list(messages(field.message_type, base) if field.message_type is not None else extremes(field))
        for value in values:
            yield make(**{**known, field.name: [value] if field.is_repeated else value})
        if field.is_repeated:
            yield make(**{**known, field.name: [values[0]] * (most + 1)})


class Attacker:
    """A client that sends bytes to methods."""

    def __init__(self, channel: grpc.Channel, descriptor: str) -> None:
        self.channel, self.base = channel, {"descriptor": descriptor, "corefile": "none"}

    def ask(self, method: MethodDescriptor, raw: bytes) -> str:
        """OK or a reason; anything that is neither is a failure of the test."""
        path = f"/{method.containing_service.full_name}/{method.name}"
        try:
            if method.server_streaming:
                stream = self.channel.unary_stream(path)(raw, timeout=20)
                for _ in itertools.islice(stream, 2):
                    pass
                stream.cancel()
            else:
                answer = self.channel.unary_unary(path)(raw, timeout=20)
                if method.name == "OpenFiles":  # whose failures are in the answer
                    return pb.OpenFilesResponse.FromString(answer).error.reason or "OK"
        except grpc.RpcError as failure:
            if failure.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in failure.details():
                return "TOO_LONG"  # grpc's own refusal of more than 3 MiB
            (detail,) = rpc_status.from_call(failure).details
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            assert info.domain == "kvmd"
            return info.reason
        return "OK"


NEVER = {"INTERNAL", "WORKER_DIED", "WORKER_HUNG", "WORKER_MEMORY", "WORKER_CPU", "DEADLINE", "UNREACHABLE"}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent], CONFIG) as running:
        yield running
    assert not any(b"Traceback" in line for line in running.log)


@pytest.fixture(scope="module")
def attacker(daemon: Daemon) -> Iterator[Attacker]:
    """One with an open dump, by a user who may do everything with it; its worker must be the same at the end."""
    with (
        connecting_as(4003, daemon.target) as peer,
        relayed(peer.connect) as target,
        grpc.insecure_channel(target) as channel,
    ):
        id_ = rpc.KvmServiceStub(channel).Open(pb.OpenRequest(corefile=str(QEMU.path)), timeout=20).descriptor
        yield Attacker(channel, id_)


@pytest.fixture(autouse=True)
def unharmed(daemon: Daemon, attacker: Attacker) -> Iterator[None]:
    with nothing_left(daemon.process.pid):
        before = workers(daemon.process.pid)
        yield
    assert before & workers(daemon.process.pid)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_field_at_its_extremes(attacker: Attacker, method: MethodDescriptor) -> None:
    base = {"descriptor": "none"} if method.name == "Close" else attacker.base
    answers = {attacker.ask(method, message.SerializeToString()) for message in messages(method.input_type, base)}
    assert not answers & NEVER
    assert "FIELD_OUT_OF_BOUNDS" in answers


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_bytes_that_are_no_request(attacker: Attacker, method: MethodDescriptor) -> None:
    """Truncated, of wrong types, numbers too long for theirs, unknown fields, groups in groups, a megabyte of zeros."""
    names = {"descriptor", "corefile"} & set(method.input_type.fields_by_name)
    whole = GetMessageClass(method.input_type)(**dict.fromkeys(names, "none")).SerializeToString()
    number = bytes([0x80 | 5 << 3, 0x7F])  # field 2005, a varint
    raws = {
        "truncated": whole[:-1] or b"\x0a",
        "length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
        "length of 64 bits": b"\x0a" + b"\xff" * 9 + b"\x01",
        "wrong type": b"\x08\x01\x11" + bytes(8),
        "eleven bytes of varint": b"\x18" + b"\xff" * 11,
        "all bits": b"\x18" + b"\xff" * 9 + b"\x01",
        "field 0": b"\x00\x01",
        "unknown field": whole + number + b"\x01",
        "groups without end": b"\x9b\x7f" * 5000,
        "no UTF-8": b"\x0a\x02\xff\xfe",
        "twice": whole * 2,
        "a megabyte": bytes(1 << 20),
    }
    answers = {name: attacker.ask(method, raw) for name, raw in raws.items()}
    assert not set(answers.values()) & NEVER, answers
    for name in ("length beyond the end", "length of 64 bits", "eleven bytes of varint", "field 0", "no UTF-8"):
        assert answers[name] == "BAD_ARGUMENT", (name, answers)
    assert answers["a megabyte"] in ("BAD_ARGUMENT", "FIELD_OUT_OF_BOUNDS")


@pytest.mark.parametrize("method", ADMIN, ids=lambda method: method.name)
def test_admin_calls_on_the_public_socket(attacker: Attacker, method: MethodDescriptor) -> None:
    for raw in (b"", b"\x0a\x02\xff\xfe", bytes(1 << 20)):
        assert attacker.ask(method, raw) == "POLICY_DENIED"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_combination(attacker: Attacker, data: st.DataObject) -> None:
    """Several fields at their extremes at once, and the whole cut anywhere."""
    method = data.draw(st.sampled_from([each for each in METHODS if each.name != "Close"]))
    message = GetMessageClass(method.input_type)()
    for other in data.draw(st.lists(st.sampled_from(list(messages(method.input_type, attacker.base))), max_size=4)):
        message.MergeFrom(other)
    raw = message.SerializeToString()
    cut = data.draw(st.integers(0, len(raw)) | st.just(len(raw)))
    assert attacker.ask(method, raw[:cut]) not in NEVER
