"""The fast path's door: tickets in, descriptors out, and nobody can hold it up."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvmd.fast import TICKET
from kvmd.front import door as module
from kvmd.front.door import Door
from kvmd.front.peer import Peer

GOOD = b"g" * TICKET


class Gate:
    """A door with what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "door")
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        listening.bind(self.path)
        listening.listen(1024)
        self.asked: list[tuple[bytes, Peer]] = []
        self.door = Door(listening, self.redeem)

    async def redeem(self, ticket: bytes, peer: Peer) -> Sequence[int]:
        self.asked.append((ticket, peer))
        if ticket == b"raise":
            raise OSError(24, "Too many open files")
        return [os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)] if ticket == GOOD else []

    async def visit(self, word: bytes) -> list[str]:
        """Say something, and answer the names of the files that come back."""
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
            sock.connect(self.path)
            sock.send(word)
            while True:
                try:
                    _, fds, _, _ = socket.recv_fds(sock, 1, 8)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.005)
            names = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds]
            for fd in fds:
                os.close(fd)
        assert loop.is_running()
        return names


@pytest.fixture
async def gate(tmp_path: Path):
    made = Gate(tmp_path)
    yield made
    made.door.close()
    made.door.close()
    await asyncio.sleep(0.01)


async def test_a_good_ticket_brings_descriptors(gate: Gate) -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert await gate.visit(GOOD) == ["/dev/null", "/dev/zero"]
    [(ticket, peer)] = gate.asked
    assert ticket == GOOD
    assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())
    await asyncio.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("word", [b"x", b"b" * TICKET, GOOD + b"x", b"x" * 100_000, b"raise"])
async def test_anything_else_brings_the_end(gate: Gate, word: bytes) -> None:
    assert await gate.visit(word) == []
    assert all(len(ticket) <= TICKET + 1 for ticket, _ in gate.asked)


async def test_who_says_nothing_is_sent_away(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(gate.path)
        await asyncio.sleep(0.3)
        assert sock.recv(1) == b""
    assert not gate.asked


async def test_who_says_nothing_keeps_nobody_else_out(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user has so many places; whoever is over them finds the door closed, and can come again."""
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(200)]
    for sock in silent:
        sock.connect(gate.path)
    await asyncio.sleep(0.05)
    assert len(gate.door._inside) == module._MOST_PER_UID
    await asyncio.sleep(0.4)
    assert not gate.door._inside
    assert not gate.door._by_uid
    assert await gate.visit(GOOD)
    for sock in silent:
        sock.close()


async def test_a_client_that_goes_at_once(gate: Gate) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(gate.path)
    assert await gate.visit(GOOD)


async def test_closed_door(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(gate.path)
        await asyncio.sleep(0.01)
        gate.door.close()
        await asyncio.sleep(0.01)
        assert sock.recv(1) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, pytest.raises(ConnectionRefusedError):
        sock.connect(gate.path)


async def test_out_of_descriptors(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """It pauses, and goes on."""
    listening = gate.door._listening

    class Broken:
        fileno = listening.fileno
        close = listening.close

        def accept(self) -> None:
            gate.door._listening = listening
            raise OSError(24, os.strerror(24))

    monkeypatch.setattr(gate.door, "_listening", Broken())
    monkeypatch.setattr(module, "_PAUSE", 0.05)
    assert await gate.visit(GOOD) == ["/dev/null", "/dev/zero"]
