"""Processes beside the worker's own that unpack pages for it: a long read of a packed dump takes several processors.

A helper is forked within the sandbox and has a filter of its own. It has no file, and nothing but a socket to its
worker, over which it is told what lies in the memory that the two share: packed pages, of which it makes pages there.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import struct
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

from kvmd.images.base import Unpack
from kvmd.worker.sandbox import SandboxLimits, confine

MEMORY = 64 << 20
"""What each may have of the worker's memory, in bytes."""
PIECE = 64 << 10
"""The most that is unpacked at once, in bytes: the largest page there is."""
SLOTS = 2
"""How many pieces a helper may have; each has a place for what is packed, and one for what becomes of it."""

_REQUEST = struct.Struct("<IIII")  # number, slot, codec, size of a page; followed by the packed pages' sizes (u32)
_ANSWER = struct.Struct("<II")  # number, bytes that lie there; 0: the pages can't be unpacked
_MOST = _REQUEST.size + PIECE  # no page is smaller than 4 bytes


class Seat(NamedTuple):
    """A helper's place: the worker's end, and what the helper itself gets."""

    helper: Helper
    link: socket.socket
    window: memoryview


class Helper:
    """The worker's end of one: what it says is as hostile as the dump is. Whatever goes wrong raises OSError."""

    def __init__(self, sock: socket.socket, window: memoryview) -> None:
        sock.setblocking(False)
        self._sock, self._window = sock, window
        self._free = list(range(SLOTS))
        self._numbers = count(1)
        # What was asked for, by number: the slot, the piece (None: nobody wants it any more), its size.
        self._asked: dict[int, tuple[int, int | None, int]] = {}

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let it go, upon which it ends."""
        self._sock.close()
        self._free.clear()

    def room(self, most: int) -> bool:
        """Whether it may be asked for one more, of so many at once."""
        return bool(self._free) and len(self._asked) < most

    def ask(self, piece: int, codec: int, size: int, packed: Sequence[bytes]) -> None:
        """Have a piece unpacked: at most :data:`PIECE` bytes of pages, none of them longer when packed."""
        number, slot, data = next(self._numbers) & 0xFFFFFFFF, self._free.pop(), b"".join(packed)
        self._asked[number] = slot, piece, len(packed) * size
        at, _ = _places(slot)
        self._window[at : at + len(data)] = data
        self._sock.send(_REQUEST.pack(number, slot, codec, size) + struct.pack(f"<{len(packed)}I", *map(len, packed)))

    @property
    def busy(self) -> bool:
        """Whether it has something to do that is wanted."""
        return any(piece is not None for _, piece, _ in self._asked.values())

    def give_up(self) -> list[int]:
        """Want nothing more of what it was asked for: those pieces."""
        wanted = [piece for _, piece, _ in self._asked.values() if piece is not None]
        self._asked = {number: (slot, None, size) for number, (slot, _, size) in self._asked.items()}
        return wanted

    def collect(self) -> list[tuple[int, memoryview | None]]:
        """Take what it has done: pieces and their pages, until it is asked again; None for those it can't unpack."""
        done: list[tuple[int, memoryview | None]] = []
        while self._asked:
            try:
                answer = self._sock.recv(_ANSWER.size + 1)
            except BlockingIOError:
                break
            if len(answer) != _ANSWER.size:
                raise ConnectionError("it has ended")
            number, length = _ANSWER.unpack(answer)
            if number not in self._asked:
                raise ConnectionError("it answers what it was not asked")
            slot, piece, size = self._asked.pop(number)
            self._free.append(slot)
            if piece is not None:
                _, at = _places(slot)
                done.append((piece, self._window[at : at + size] if length == size else None))
        return done


def seats(number: int) -> list[Seat]:
    """Make room for so many, before the sandbox is entered."""
    made = []
    for _ in range(number):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        window = memoryview(mmap.mmap(-1, 2 * SLOTS * PIECE))  # which a child of fork(2) has, too
        made.append(Seat(Helper(ours, window), theirs, window))
    return made


def start(made: list[Seat], limits: SandboxLimits, unpack: Unpack) -> None:
    """Fork a helper for each seat, as the last thing before the worker's filter.

    Not earlier: a process in a Landlock domain of its own would not be ended with the worker (landlock(7), signals).

    :param limits: of each.
    :param unpack: what it does.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody can wait for them once there is the filter
    parent = os.getpid()
    for seat in made:
        if os.fork() == 0:
            _run(seat, limits._replace(parent=parent, keep=(0, 1, 2, seat.link.fileno())), unpack)
        seat.link.close()


def _run(seat: Seat, limits: SandboxLimits, unpack: Unpack) -> None:
    """Be a helper, until the worker wants none."""
    try:
        os.dup2(1, 2)  # the worker's end is seen by the end of its log, whatever a helper does
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # whoever waits for the worker goes first
        confine(limits)
        while request := seat.link.recv(_MOST):
            seat.link.send(_answer(request, seat.window, unpack))
    finally:
        os._exit(0)


def _answer(request: bytes, window: memoryview, unpack: Unpack) -> bytes:
    number, slot, codec, size = _REQUEST.unpack_from(request)
    at, to = _places(slot)
    packed: list[bytes] = []
    for (length,) in struct.iter_unpack("<I", request[_REQUEST.size :]):
        packed.append(bytes(window[at : at + length]))
        at += length
    length = len(packed) * size
    try:
        unpack(codec, size, packed, window[to : to + length])
    except ValueError:
        return _ANSWER.pack(number, 0)
    return _ANSWER.pack(number, length)


def _places(slot: int) -> tuple[int, int]:
    """Where in the window a slot's packed pages lie, and where its pages."""
    return 2 * slot * PIECE, (2 * slot + 1) * PIECE
