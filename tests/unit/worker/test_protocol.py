"""What the daemon believes of a worker's errors."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason, error
from kvmd.v1 import error_pb2
from kvmd.worker.protocol import decode_error, encode_error


def said(reason: str, message: str = "why", **metadata: str) -> bytes:
    return error_pb2.Error(reason=reason, message=message, metadata=metadata).SerializeToString()


def test_an_error_comes_back_as_it_was() -> None:
    told = error(Reason.NOT_MAPPED, "not mapped: é", address=0xFFFF, readable=3)
    back = decode_error(encode_error(told).SerializeToString())
    assert (type(back), back.reason, back.message, back.metadata) == (
        type(told), told.reason, told.message, told.metadata,
    )  # fmt: skip


@pytest.mark.parametrize(
    "reason",
    ["NO_PEER_IDENTITY", "NO_SUCH_DESCRIPTOR", "DESCRIPTOR_LIMIT", "WORKER_DIED", "DEADLINE", "NEW", ""],
)
def test_a_worker_does_not_speak_for_the_daemon(reason: str) -> None:
    with pytest.raises(ValueError, match=reason or "Reason"):
        decode_error(said(reason))


def test_size_is_bounded() -> None:
    words = {f"{number:0100}": "v" * 5000 for number in range(50)}
    failure = decode_error(said("CORRUPT_DATA", "m" * 5000, **words))
    assert len(failure.message) == 1024
    assert len(failure.metadata) <= 16
    assert all(len(key) <= 64 and len(value) <= 1024 for key, value in failure.metadata.items())


def test_control_characters_are_escaped() -> None:
    failure = decode_error(said("CORRUPT_DATA", "a\x1b[31m\nb", name="\r\x00é"))
    assert failure.message == r"a\x1b[31m\nb"
    assert failure.metadata == {"name": r"\r\x00é"}


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_a_value_error(payload: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(decode_error(payload), KvmError)
