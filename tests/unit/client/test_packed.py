"""Compressed memory: what the worker packs comes back, and what a daemon might send harms nobody."""

from __future__ import annotations

import struct

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from kvmd.v1 import memory_pb2
from kvmd.worker.packing import packed
from libkvm.errors import InternalError
from libkvm.packed import available, plain

MIB = 1 << 20


def test_pages_are_packed_and_come_back() -> None:
    data = b"kernel memory " * 5000
    for kind in (memory_pb2.ReadResponse, memory_pb2.ReadStreamResponse, memory_pb2.RangeResult):
        piece = packed(kind(data=data), True)
        assert len(piece.data) < len(data) // 10
        assert plain(piece, MIB) == data
        assert packed(kind(data=data), False).data == data


@given(st.binary(max_size=2000), st.booleans())
def test_anything_comes_back(data: bytes, wanted: bool) -> None:
    piece = packed(memory_pb2.ReadResponse(data=data), wanted)
    assert len(piece.data) <= len(data)
    assert plain(piece, 2000) == data


def refused(data: bytes, length: int, most: int = MIB) -> None:
    with pytest.raises(InternalError):
        plain(memory_pb2.ReadResponse(data=data, plain_length=length), most)


def test_lies_about_lengths_are_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(5000))
    refused(frame, 4999)
    refused(frame, 5001)
    refused(frame, 5000, most=4096)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 1 << 16
    refused(bomb, 1 << 28)
    refused(bomb, 4096)
    # The length in the frame's header made a small one: single segment, 4 bytes of length.
    header = zstandard.get_frame_parameters(bomb)
    assert header.content_size == 1 << 28
    refused(bomb.replace(struct.pack("<I", 1 << 28), struct.pack("<I", 4096), 1), 4096)


def test_what_is_no_frame_is_refused() -> None:
    frame = zstandard.ZstdCompressor().compress(b"x" * 5000)
    for data in (b"", b"\0" * 100, frame[:-3], b"\x28\xb5\x2f\xfd", frame[:8] + b"\xff" * 20):
        refused(data, 5000)
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(b"x" * 5000)
    refused(unsized, 5000)


@given(st.binary(max_size=200), st.integers(1, 5000))
def test_any_bytes_are_refused_or_as_long_as_told(data: bytes, length: int) -> None:
    try:
        found = plain(memory_pb2.ReadResponse(data=b"\x28\xb5\x2f\xfd" + data, plain_length=length), 5000)
    except InternalError:
        return
    assert len(found) == length


def test_it_is_there() -> None:
    assert available()
