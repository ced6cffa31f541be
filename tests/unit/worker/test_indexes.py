"""Indexes of kernels' builds, as the worker's request loop asks for them, takes and makes them."""

from __future__ import annotations

import os

import pytest

from btf import Builder
from kvmd.errors import Reason
from kvmd.images.linux.sections import pack, unpack
from kvmd.v1 import memory_pb2
from kvmd.worker.protocol import Kind

from .serving import FRAME, Daemon, Memory, reason


class Learned(Memory):
    """An image that opens faster with an index."""

    build_id = "ab" * 20
    given = b""

    def use_index(self, data: memoryview) -> None:
        self.given = bytes(data)

    def index_inputs(self) -> bytes:
        return b"" if self.given else bytes(3 << 20)


@pytest.mark.parametrize("index", [b"", b"the index"])
def test_an_index_is_asked_for_before_all_else(index: bytes) -> None:
    running = Daemon(Learned)
    fd = os.memfd_create("index")
    os.write(fd, index)
    with open("/dev/null", "rb") as core:
        asked = running.ask(Kind.OPEN, FRAME.encode(), [core.fileno()] * 3)
    assert asked == (Kind.INDEX, b"ab" * 20)
    assert running.ask(Kind.INDEX, b"", [fd] if index else []) == (Kind.RESULT, b"\1kallsyms")
    assert running.images[0].given == index
    answer = running.ask(Kind.CALL, b"IndexInputs\0")
    assert answer[0] is (Kind.END if index else Kind.ITEM)
    running.close()
    os.close(fd)


def test_an_index_is_made_of_what_is_given(daemon: Daemon) -> None:
    fd = os.memfd_create("inputs")
    os.write(fd, pack({"btf": Builder().bytes()}))
    kind, made = daemon.ask(Kind.MAKE, b"", [fd])
    assert kind is Kind.RESULT
    assert "btf.digest" in unpack(memoryview(made))
    os.truncate(fd, 10)
    assert reason(daemon.ask(Kind.MAKE, b"", [fd])) is Reason.CORRUPT_DATA
    assert daemon.call("IndexInputs", memory_pb2.ReadRequest()) == (Kind.END, b"")
    os.close(fd)


def test_an_index_before_an_image_is_refused() -> None:
    running = Daemon()
    assert reason(running.ask(Kind.INDEX)) is Reason.INTERNAL
    running.close()
