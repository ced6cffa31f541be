"""A socket to an image's worker, and the window it answers through (:mod:`kvmd.fast`)."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvmd.fast import ANSWER, CACHED, HALF, INLINE, MOST_ANSWER, ONE, RANGE, REQUEST, WINDOW
from kvmd.v1 import memory_pb2
from libkvm.fast.pages import Pages

_ALERT, _EACH = 200e-6, 250e-12  # seconds, and for each byte
_RETRY = 16
_KERNEL = (memory_pb2.ADDRESS_SPACE_UNSPECIFIED, memory_pb2.ADDRESS_SPACE_KERNEL)
_TIMEVAL = struct.Struct("@ll")


class BrokenLinkError(Exception):
    """The link is of no more use: the other end is gone, or answered nonsense, or not in time."""


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A read that was asked for before anybody wanted it."""

    what: tuple[int, int, int, int]
    number: int
    half: int


class Link:
    """One client's direct way to a worker. Safe to use from several threads, one request at a time.

    Large reads that follow one another are asked for ahead, so that the worker reads while the client copies.

    :ivar pages: the page cache; None if the image has none.
    :ivar open: whether it is of use still; once it is not, it never is again.
    """

    def __init__(self, sock: socket.socket, window: mmap.mmap, pages: Pages | None) -> None:
        """Take over a socket."""
        self._sock, self._window, self.pages = sock, memoryview(window), pages
        self.open = True
        self._lock = threading.Lock()
        self._patience = math.nan
        self._buffer = memoryview(bytearray(MOST_ANSWER))  # a new one for each answer would take its time
        self._quick, self._waits = True, 0
        self._number = 0
        # The numbers of unanswered requests, and the half of the window that each is for; -1: none.
        self._waiting: dict[int, int] = {}
        self._ahead: _Ahead | None = None
        self._early: bytes | None = None  # its answer, if that has come
        self._end: tuple[int, int, int] = (-1, 0, 0)
        self._lent: set[int] = set()  # halves of the window that somebody looks at

    @staticmethod
    def map(fd: int) -> mmap.mmap:
        """Map a window.

        :raises OSError: it is none.
        """
        return mmap.mmap(fd, WINDOW, access=mmap.ACCESS_READ)

    def drop(self) -> None:
        """Use it no more: whoever waits for an answer goes on without. Idempotent; may be called from any thread."""
        self.open, self.pages = False, None
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._close()

    def _close(self) -> None:
        """Close the socket of a link that isn't open any more, unless somebody has its turn, and will."""
        if self._lock.acquire(blocking=False):
            self._sock.close()
            self._lock.release()

    def forget(self) -> None:
        """The same in a child of fork(2): the socket is the parent's still."""
        self.open, self.pages = False, None
        self._lock = threading.Lock()
        self._sock.close()

    def __del__(self) -> None:
        self._sock.close()

    @contextlib.contextmanager
    def _turn(self, timeout: float) -> Iterator[None]:
        """Hold the socket for at most so long; whatever goes wrong meanwhile ends the link."""
        until = time.monotonic() + timeout
        if not self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX)):
            raise TimeoutError
        try:
            if not self.open:
                raise BrokenLinkError
            self._set_patience(until - time.monotonic())
            yield
        except BlockingIOError:
            self.drop()
            raise TimeoutError from None
        except BaseException as failure:  # a signal's handler may have raised it: who knows what has been sent
            self.drop()
            if isinstance(failure, OSError | struct.error | IndexError | BrokenLinkError):
                raise BrokenLinkError from failure
            raise
        finally:
            self._lock.release()
            if not self.open:
                self._close()

    def _set_patience(self, seconds: float) -> None:
        """Wait at most so long, give or take a tenth."""
        if not seconds <= self._patience <= 1.1 * seconds:
            self._patience = max(0.001, min(seconds, 1e9))
            word = _TIMEVAL.pack(int(self._patience), int(self._patience % 1 * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, word)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, word)

    def _next(self) -> int:
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number

    def _send(self, request: bytes, half: int) -> int:
        if self._sock.send(request) != len(request):
            raise BrokenLinkError
        self._waiting[self._number] = half
        return self._number

    def _wait(self, length: int) -> int:
        """Take the next answer into the buffer.

        To be woken takes several times as long as to look for a while, and to wake somebody takes the worker a quarter
        of what it takes to read a MiB; but where looking was in vain the last time, as beside many others that read, it
        is only tried again now and then.
        """
        self._waits += 1
        if self._quick or not self._waits % _RETRY:
            until = time.perf_counter() + _ALERT + length * _EACH
            while time.perf_counter() < until:
                try:
                    length = self._sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    os.sched_yield()
                    continue
                self._quick = True
                return length
            self._quick = False
        return self._sock.recv_into(self._buffer)

    def _receive(self, length: int = 0) -> tuple[int, bytes]:
        answer = bytes(self._buffer[: self._wait(length)])
        number, *_ = ANSWER.unpack_from(answer)
        if self._waiting.pop(number, None) is None:
            raise BrokenLinkError
        if self._ahead is not None and number == self._ahead.number:
            self._early = answer
        return number, answer

    def _answer(self, number: int, length: int = 0) -> bytes:
        while True:
            got, answer = self._receive(length)
            if got == number:
                return answer

    def _settle(self, half: int) -> None:
        """Let come what is to come into a half of the window."""
        while half in self._waiting.values():
            self._receive()

    def read(self, address: int, length: int, space: int, pid: int, timeout: float) -> bytes | None:
        """Read at most a half of a window; None if it can't be read.

        :raises BrokenLinkError: ask the daemon.
        :raises TimeoutError: it took too long.
        """
        if length > INLINE:
            if (data := self._kept(address, length, space)) is not None:
                return data
            with self._large(address, length, space, pid, timeout) as view:
                return None if view is None else bytes(view)
        with self._turn(timeout):
            number = self._send(ONE.pack(self._next(), space, 0, 0, pid, address, length), -1)
            answer = self._answer(number)
        _, failed, size, slot = ANSWER.unpack_from(answer)
        if failed:
            return None
        if size != length or len(answer) != ANSWER.size + length:
            self.drop()
            raise BrokenLinkError
        if slot and (pages := self.pages) is not None:
            pages.note(address >> 12, slot - 1)
        return answer[ANSWER.size :]

    def readinto(self, address: int, into: memoryview, space: int, pid: int, timeout: float) -> bool:
        """Fill a buffer of at most a half of a window; otherwise as :meth:`read`.

        :returns: whether it was filled.
        """
        data = self._kept(address, len(into), space)
        if data is None and len(into) <= INLINE:
            data = self.read(address, len(into), space, pid, timeout)
        if data is not None or len(into) <= INLINE:
            into[:] = data or into
            return data is not None
        with self._large(address, len(into), space, pid, timeout) as view:
            if view is not None:
                into[:] = view
            return view is not None

    def lend(
        self, address: int, length: int, space: int, pid: int, timeout: float
    ) -> contextlib.AbstractContextManager[memoryview] | None:
        """Read as :meth:`read`, and show it where the worker has put it, without a copy if it is in the window.

        Other reads take the other half meanwhile; where that is lent, too, they are left to the daemon.
        """
        if length <= INLINE or (self.pages is not None and space in _KERNEL):
            data = self.read(address, length, space, pid, timeout)
            return None if data is None else memoryview(data)
        with self._turn(timeout):
            half, _ = self._fetch(address, length, space, pid)
            if half is None:
                return None
            self._lent.add(half)
        return self._loan(half, length)

    @contextlib.contextmanager
    def _loan(self, half: int, length: int) -> Iterator[memoryview]:
        try:
            with self._window[half * HALF :][:length] as view:
                yield view
        finally:
            self._lent.discard(half)

    def _free(self) -> int | None:
        """A half of the window that nobody looks at."""
        return next((half for half in (0, 1) if half not in self._lent), None)

    def _kept(self, address: int, length: int, space: int) -> bytes | None:
        """Read from the page cache, if all of it is there."""
        pages = self.pages if space in _KERNEL else None
        return pages.read(address, length) if pages is not None else None

    @contextlib.contextmanager
    def _large(
        self, address: int, length: int, space: int, pid: int, timeout: float
    ) -> Iterator[memoryview | bytes | None]:
        """Have the worker read, and take it from the page cache; or lend the window out until the copy is made."""
        with self._turn(timeout):
            half, data = self._fetch(address, length, space, pid)
            yield self._window[half * HALF :][:length] if half is not None else data

    def _fetch(self, address: int, length: int, space: int, pid: int) -> tuple[int | None, bytes | None]:
        """Have the worker read.

        :returns: the half of the window that has it, or it itself; neither: it can't be read, or there is no room.
        """
        what = (address, length, space, pid)
        asked, early = self._ahead, self._early
        self._ahead = self._early = None
        if asked is None or asked.what != what:
            if (free := self._free()) is None:
                return None, None
            asked, early = self._ask(free, *what), None
        if self._end == (address, space, pid) and 1 - asked.half not in self._lent:
            # One after the other: have the next read meanwhile.
            self._ahead = self._ask(1 - asked.half, address + length, length, space, pid)
        failed, cached = self._read_answer(early or self._answer(asked.number, length), length)
        if not failed:
            self._end = (address + length, space, pid)
        if cached and (data := self._kept(address, length, space)) is not None:
            return None, data
        if cached:  # it isn't any more
            asked = self._ask(asked.half, *what, flags=0)
            failed, _ = self._read_answer(self._answer(asked.number), length)
        return (None if failed else asked.half), None

    @staticmethod
    def _read_answer(answer: bytes, length: int) -> tuple[bool, bool]:
        """What the answer to a large read says: whether it failed, and whether it is in the page cache."""
        _, failed, size, cached = ANSWER.unpack_from(answer)
        if not failed and size != length:
            raise BrokenLinkError
        return bool(failed), not failed and bool(cached)

    def _ask(self, half: int, address: int, length: int, space: int, pid: int, flags: int = CACHED) -> _Ahead:  # noqa: PLR0913, PLR0917 - what a request is
        self._settle(half)
        number = self._next()
        flags = flags if self.pages is not None and space in _KERNEL else 0
        self._send(ONE.pack(number, space, half, flags, pid, address & 2**64 - 1, length), half)
        return _Ahead((address, length, space, pid), number, half)

    def readv(self, ranges: Sequence[tuple[int, int]], space: int, pid: int, timeout: float) -> list[bytes | None]:
        """Read ranges whose lengths add up to at most a half of a window; None for those that can't be read.

        Otherwise as :meth:`read`.
        """
        with self._turn(timeout):
            if (half := self._free()) is None:
                return [None] * len(ranges)
            self._ahead = self._early = None
            self._settle(half)
            head = REQUEST.pack(self._next(), space, half, 0, pid)
            number = self._send(head + b"".join([RANGE.pack(*each) for each in ranges]), half)
            answer = self._answer(number)
            _, count, size, _ = ANSWER.unpack_from(answer)
            failed = set(struct.unpack_from(f"<{count}I", answer, ANSWER.size))
            data = bytes(self._window[half * HALF :][:size]) if size > INLINE else answer[ANSWER.size + 4 * count :]
        return self._split(ranges, failed, data)

    def _split(self, ranges: Sequence[tuple[int, int]], failed: set[int], data: bytes) -> list[bytes | None]:
        results: list[bytes | None] = []
        at = 0
        for index, (_, length) in enumerate(ranges):
            if index in failed:
                results.append(None)
            else:
                results.append(data[at : at + length])
                at += length
        if at != len(data):
            self.drop()
            raise BrokenLinkError
        return results
