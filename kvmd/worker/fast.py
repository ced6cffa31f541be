"""The worker's end of the fast path (:mod:`kvmd.fast`): answers clients directly, each over a socket of its own.

What a client sends is hostile. Whatever it does costs its own socket: a request that is none, and an answer that it
doesn't take, end it. Nothing here waits for a client.
"""

from __future__ import annotations

import mmap
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, TypeVar, cast

from kvmd.errors import KvmError
from kvmd.fast import ANSWER, CACHED, COUNTS, HALF, INLINE, MOST_REQUEST, NOTES, PAGE, RANGE, REQUEST, WINDOW
from kvmd.images.base import Image
from kvmd.v1 import memory_pb2
from kvmd.worker.cache import PageCache
from kvmd.worker.pace import Pace

_KERNEL = (memory_pb2.ADDRESS_SPACE_UNSPECIFIED, memory_pb2.ADDRESS_SPACE_KERNEL)
STEP = 256 << 10
"""After so many bytes of one request, others get their turn."""
_QUICK, _SLOW = 100e-6, 500e-6
"""Seconds: what takes less may be followed by twice as much at once; after what takes more it is a step again."""
PIECE = 2 << 10
"""What the reading of a piece counts for itself, in bytes."""
R = TypeVar("R")
_BUFFER = memoryview(bytearray(MOST_REQUEST + 1))
_SPACES = len(memory_pb2.AddressSpace.values())


class RequestError(Exception):
    """A client has sent what is no request."""


class Request(NamedTuple):
    """What a client asks for: :mod:`kvmd.fast`.

    :ivar total: how many bytes all ranges have.
    """

    number: int
    space: int
    half: int
    flags: int
    pid: int
    ranges: list[tuple[int, int]]
    total: int


class Reader:
    """Reads of one image, for any client.

    :ivar cache: the pages that have been read; None where nothing is kept: of the running kernel.
    :ivar pace: whether others make small reads.
    """

    def __init__(self, image: Image) -> None:
        self._image = image
        self.cache: PageCache | None = None
        self.pace = Pace()
        self._step = STEP

    @property
    def step(self) -> int:
        """How many bytes may be read at once: :data:`STEP`, and more where reads are quick and none is small."""
        return STEP if self.pace.crowded() else self._step

    def took(self, length: int, seconds: float) -> None:
        """Take note of how long a read took."""
        if seconds > _SLOW:
            self._step = STEP
        elif length >= self._step < HALF and seconds < _QUICK:
            self._step *= 2

    def small(self, address: int, length: int) -> tuple[bytes | memoryview, int]:
        """Read kernel memory within a page, through the cache.

        :returns: the bytes, and one more than the page's slot; 0 if the page is in none.
        """
        page, inside = address >> 12, address % PAGE
        if self.cache is None or not page:
            return self._image.read(address, length, memory_pb2.ADDRESS_SPACE_KERNEL), 0
        slot = self.cache.find(page)
        if slot is None:
            try:
                data = self._image.read(address - inside, PAGE, memory_pb2.ADDRESS_SPACE_KERNEL)
            except KvmError:  # a part of it may be there
                return self._image.read(address, length, memory_pb2.ADDRESS_SPACE_KERNEL), 0
            slot = self.cache.put(page, data)
        return self.cache.data(slot)[inside : inside + length], slot + 1

    def fill(self, address: int, into: memoryview, space: int, pid: int) -> int:
        """Read memory of any kind into a buffer.

        :returns: one more than the slot of the page that it came from, 0 if it is in none, or several.
        """
        length, slot = len(into), 0
        kernel = space in _KERNEL
        if kernel and 0 < length <= PAGE - address % PAGE:
            into[:], slot = self.small(address, length)
            return slot
        wire = cast("memory_pb2.AddressSpace", space)
        if kernel and self.cache is not None:
            if (done := self.cache.copy(address, into)) and done == length:
                return 0
            address, into, length = address + done, into[done:], length - done
        if length <= PAGE or not self._image.read_into(address, into, wire):
            into[:] = self._image.read(address, length, wire, pid)
        if kernel and self.cache is not None:
            self.cache.fill(address, into)
        return 0

    def keep(self, address: int, length: int) -> bool:
        """Read kernel memory into the page cache.

        :returns: whether it is there now; if not, :meth:`fill` may do it.
        :raises KvmError: the same.
        """
        first, cache = address >> 12, self.cache
        if cache is None or not first or address + length > 1 << 64:
            return False
        for page, count in cache.missing(first, (address + length + PAGE - 1 >> 12) - first):
            if (slot := cache.room(page, count)) is None:
                return False
            into = cache.run(slot, count)
            if not self._image.read_into(page * PAGE, into, memory_pb2.ADDRESS_SPACE_KERNEL):
                into[:] = self._image.read(page * PAGE, count * PAGE, memory_pb2.ADDRESS_SPACE_KERNEL)
            cache.filled(page, slot, count)
        return True


class Client:
    """One client: its socket, which this owns, and its window.

    :ivar jobs: how many of its requests are being worked at.
    :raises OSError: the window can't be mapped.
    """

    def __init__(self, sock: socket.socket, window: int) -> None:
        self._sock = sock
        self.jobs = 0
        sock.setblocking(False)
        self._window = memoryview(mmap.mmap(window, WINDOW))
        self._requests = self._bytes = 0

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let the client go."""
        self._sock.close()

    def take(self, reader: Reader) -> Iterator[None] | None:
        """Take one request, and begin with it.

        :returns: what is left to do, a step at a time; None if the client has gone, or is none.
        """
        try:
            # Not into a new buffer: to make room for the longest, and to give it back, takes longer than all else.
            length = self._sock.recv_into(_BUFFER)
            return self._paced(reader, _understood(_BUFFER[:length])) if length else None
        except (OSError, RequestError):
            return None

    def _paced(self, reader: Reader, request: Request) -> Iterator[None]:
        """Read, and answer.

        :raises OSError: the client has gone, or doesn't take its answers.
        """
        if request.total <= INLINE:
            reader.pace.small()
            yield from self._work(reader, request)
            return
        reader.pace.asked(self.fileno(), request.half)
        yield  # small requests go first
        yield from self._work(reader, request)
        reader.pace.filled(self.fileno(), request.half)

    def _work(self, reader: Reader, request: Request) -> Iterator[None]:
        number, space, half, flags, pid, ranges, total = request
        size, slot, step = 0, 0, 0
        cached = flags & CACHED and total > INLINE and len(ranges) == 1 and space in _KERNEL
        if cached and (yield from _kept(reader, *ranges[0])):
            self._answer(ANSWER.pack(number, 0, total, 1), total)
            return
        # What is too long for a message goes where it belongs at once.
        whole = self._window[half * HALF :] if total > INLINE else memoryview(bytearray(total))
        failed: list[int] = []
        for index, (address, length) in enumerate(ranges):
            for at, count in _pieces(reader, address, length):
                if step >= reader.step:
                    step = 0
                    yield
                into = whole[size + at : size + at + count]
                found = _tried(reader, count, reader.fill, address + at, into, space, pid)
                if found is None:
                    failed.append(index)
                    break
                slot, step = found, step + count + PIECE
            else:
                size += length
        head = ANSWER.pack(number, len(failed), size, slot if len(ranges) == 1 and size <= PAGE else 0)
        self._answer(head + struct.pack(f"<{len(failed)}I", *failed) + (whole[:size] if size <= INLINE else b""), size)

    def _answer(self, answer: bytes, size: int) -> None:
        """Send an answer, and put it on view for the daemon, which can't see what goes by here."""
        self._requests += 1
        self._bytes += size
        COUNTS.pack_into(self._window, NOTES, self._requests, self._bytes)
        if self._sock.send(answer) != len(answer):
            raise BlockingIOError


def _pieces(reader: Reader, address: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range into offsets and lengths, at the ends of pages; one of nothing is one of nothing."""
    at = 0
    while True:
        count = min(length - at, reader.step - (address + at) % PAGE)
        yield at, count
        at += count
        if at >= length:
            return


def _kept(reader: Reader, address: int, length: int) -> Generator[None, None, bool]:
    """Read kernel memory into the page cache, a step at a time; answers whether all of it is there."""
    for at, count in _pieces(reader, address, length):
        if not _tried(reader, count, reader.keep, address + at, count):
            return False
        yield
    return True


def _tried(reader: Reader, length: int, read: Callable[..., R], *what: Any) -> R | None:
    """Read so many bytes.

    :returns: what the read does; None if the memory can't be read.
    """
    began = time.perf_counter()
    try:
        return read(*what)
    except KvmError:
        return None
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - a fault of ours: told to the log, as for the daemon's calls
        traceback.print_exc(file=sys.stderr)
        return None
    finally:
        if length >= STEP:
            reader.took(length, time.perf_counter() - began)


def _understood(request: memoryview) -> Request:
    """Take a request apart.

    :raises RequestError: it is none.
    """
    rest = len(request) - REQUEST.size
    if rest <= 0 or rest % RANGE.size or len(request) > MOST_REQUEST:
        raise RequestError("length")
    number, space, half, flags, pid = REQUEST.unpack_from(request)
    if space >= _SPACES or half > 1 or flags > CACHED:
        raise RequestError("header")
    ranges = [RANGE.unpack_from(request, REQUEST.size)] if rest == RANGE.size else _ranges(request)
    if (total := sum(length for _, length in ranges)) > HALF:
        raise RequestError("size")
    return Request(number, space, half, flags, pid, ranges, total)


def _ranges(request: memoryview) -> list[tuple[int, int]]:
    return list(RANGE.iter_unpack(request[REQUEST.size :]))
