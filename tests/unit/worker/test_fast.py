"""The worker's end of the fast path, over real sockets and shared memory."""

from __future__ import annotations

import os
import random
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd import fast
from kvmd.errors import Reason, error
from kvmd.fast import ANSWER, CACHED, COUNTS, HALF, INLINE, MOST_RANGES, MOST_REQUEST, ONE, PAGE, RANGE, REQUEST, WINDOW
from kvmd.v1 import memory_pb2
from kvmd.worker.cache import PageCache
from kvmd.worker.fast import Client, Reader
from libkvm.fast.pages import Pages


def serve(client: Client, reader: Reader) -> bool:
    """Answer one request; whether the client is still there."""
    job = client.take(reader)
    try:
        for _ in job or ():
            pass
    except OSError:
        return False
    return job is not None


KERNEL, PHYSICAL, USER = (
    memory_pb2.ADDRESS_SPACE_KERNEL,
    memory_pb2.ADDRESS_SPACE_PHYSICAL,
    memory_pb2.ADDRESS_SPACE_USER,
)
BASE = 0xFFFF888000000000
HOLE = BASE + (4 << 20)
TORN = HOLE + 16 * PAGE


PRIME = 65521
TABLE = memoryview(random.Random(3).randbytes(PRIME) * 18)


def pattern(address: int, length: int) -> bytes:
    return bytes(TABLE[address % PRIME : address % PRIME + length])


def missing(address: int, length: int) -> list[int]:
    """Where what is missing begins that a range meets."""
    pieces = ((HOLE, HOLE + PAGE), (TORN + 2048, TORN + PAGE))
    return [low for low, high in pieces if address < high and low < address + length]


class Memory:
    """An image whose first half of the page TORN is all there is of it, and whose page HOLE is missing."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int, int, int]] = []
        self.filled: list[tuple[int, int]] = []
        self.pause = 0.0

    def read_into(self, address: int, into: memoryview, space: int) -> bool:
        if self.pause:
            time.sleep(self.pause)
        if space != KERNEL or address % 32 or missing(address, len(into)):
            return False
        into[:] = pattern(address, len(into))
        self.filled.append((address, len(into)))
        return True

    def read(self, address: int, length: int, space: int, pid: int = 0) -> bytes:
        self.reads.append((address, length, space, pid))
        if space == PHYSICAL and address == 666:
            raise ZeroDivisionError
        if space == PHYSICAL and address == 667:
            raise MemoryError
        if space == KERNEL:
            for low in missing(address, length):
                raise error(Reason.EXCLUDED, "left out", address=max(low, address))
        return pattern(address, length)


class End:
    """A client, and its worker."""

    def __init__(self, *, cached: bool) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.setblocking(False)
        self.window = os.memfd_create("window")
        os.ftruncate(self.window, WINDOW)
        self.image, self.cache = Memory(), -1
        self.reader = Reader(self.image)
        if cached:
            fd, size = os.memfd_create("cache"), fast.cache_size(512)
            os.ftruncate(fd, size)
            self.reader.cache, self.cache = PageCache(fd, size), fd
        self.client = Client(theirs, self.window)

    def ask(self, request: bytes) -> bytes:
        self.sock.send(request)
        assert serve(self.client, self.reader)
        return self.sock.recv(1 << 20)

    def read(self, *ranges: tuple[int, int], space: int = KERNEL, half: int = 0, pid: int = 0) -> list[bytes | None]:
        packed = b"".join(RANGE.pack(*each) for each in ranges)
        answer = self.ask(REQUEST.pack(77, space, half, 0, pid) + packed)
        number, count, size, _ = ANSWER.unpack_from(answer)
        failed = struct.unpack_from(f"<{count}I", answer, ANSWER.size)
        assert number == 77
        data = os.pread(self.window, size, half * HALF) if size > INLINE else answer[ANSWER.size + 4 * count :]
        assert len(data) == size
        results: list[bytes | None] = []
        for index, (_, length) in enumerate(ranges):
            results.append(None if index in failed else data[:length])
            data = data if index in failed else data[length:]
        assert not data
        return results

    def close(self) -> None:
        self.sock.close()
        self.client.close()
        os.close(self.window)
        if self.cache >= 0:
            os.close(self.cache)


@pytest.fixture(params=[False, True], ids=["plain", "cached"])
def end(request: pytest.FixtureRequest) -> Iterator[End]:
    made = End(cached=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("length", [0, 1, 8, PAGE - 16, PAGE, INLINE, INLINE + 1, 100_000, HALF])
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("start", [BASE + 16, BASE + 32])  # the image fills buffers from the second on
def test_a_read_of_any_size(end: End, length: int, half: int, start: int) -> None:
    for _ in range(2):  # the second may come from the cache
        assert end.read((start, length), half=half) == [pattern(start, length)]


def test_many_ranges_in_order(end: End) -> None:
    ranges = [(BASE + n * 1000, n % 97) for n in range(2000)]
    assert end.read(*ranges) == [pattern(*each) for each in ranges]


def test_what_can_not_be_read_is_told_by_its_place(end: End) -> None:
    ranges = [(BASE, 8), (HOLE, 8), (HOLE - 4, 8), (HOLE - 8, 8), (TORN + 2000, 8), (TORN + 2044, 8), (BASE, 20000)]
    for _ in range(2):
        expected = [pattern(*each) for each in ranges]
        for index in (1, 2, 5):
            expected[index] = None
        assert end.read(*ranges) == expected


def test_errors_and_parts_of_pages_are_not_kept() -> None:
    end = End(cached=True)
    for _ in range(2):
        assert end.read((HOLE, 8), (TORN, 8)) == [None, pattern(TORN, 8)]
    assert len([each for each in end.image.reads if each[0] == HOLE]) == 4  # the page, and then the range; twice
    assert end.reader.cache.find(HOLE >> 12) is None
    assert end.reader.cache.find(TORN >> 12) is None
    end.close()


def test_only_kernel_memory_is_kept() -> None:
    end = End(cached=True)
    for _ in range(2):
        assert end.read((BASE, 8), space=PHYSICAL) == [pattern(BASE, 8)]
        assert end.read((BASE, 8), space=USER, pid=7) == [pattern(BASE, 8)]
    assert end.image.reads == [(BASE, 8, PHYSICAL, 0), (BASE, 8, USER, 7)] * 2
    end.close()


def test_the_slot_of_a_page_that_is_kept_is_told() -> None:
    end = End(cached=True)
    answer = end.ask(ONE.pack(1, KERNEL, 0, 0, 0, BASE + 8, 8))
    slot = ANSWER.unpack_from(answer)[3] - 1
    assert bytes(end.reader.cache.data(slot)) == pattern(BASE, PAGE)
    for request in (
        ONE.pack(1, PHYSICAL, 0, 0, 0, BASE, 8),
        ONE.pack(1, KERNEL, 0, 0, 0, HOLE, 8),
        ONE.pack(1, KERNEL, 0, 0, 0, BASE, 2 * PAGE),
        ONE.pack(1, KERNEL, 0, 0, 0, BASE, 8) + RANGE.pack(BASE, 8),
    ):
        assert ANSWER.unpack_from(end.ask(request))[3] == 0
    end.close()


def steps(end: End, request: bytes) -> int:
    """In how many steps a request is answered."""
    end.sock.send(request)
    job = end.client.take(end.reader)
    assert job is not None
    count = len(list(job))
    assert end.sock.recv(1 << 20)
    return count


def test_what_is_quick_is_done_in_fewer_steps() -> None:
    """As long as it is."""
    end = End(cached=False)
    requests = [ONE.pack(1, KERNEL, 0, 0, 0, BASE + n * HALF, HALF) for n in range(3)]
    for _ in range(50):  # until nothing else takes the processor meanwhile
        if steps(end, requests[0]) == 1:  # it gives way before all else, and is answered with what it does then
            break
    else:
        pytest.fail("always in steps")
    end.image.pause = 2e-3
    steps(end, requests[1])
    assert steps(end, requests[2]) >= 3
    end.close()


def test_who_looks_into_the_page_cache_finds_it_there() -> None:
    """Nothing is put into the window, nor read twice, whatever part of it was there before."""
    end = End(cached=True)
    pages = Pages(end.cache, fast.cache_size(512))
    end.read((BASE + 5 * PAGE, 8), (BASE + 6 * PAGE, 8), (BASE + 20 * PAGE, 8))
    ranges = [(BASE, 64 * PAGE), (BASE, 64 * PAGE), (BASE + 60 * PAGE + 7, 9 * PAGE), (BASE + 1, INLINE + 1)]
    for start, length in ranges:
        answer = end.ask(ONE.pack(1, KERNEL, 0, CACHED, 0, start, length))
        assert ANSWER.unpack(answer) == (1, 0, length, 1)
        assert pages.read(start, length) == pattern(start, length)
    assert not any(os.pread(end.window, HALF, 0))
    read = [page for address, size in end.image.filled for page in range(address, address + size, PAGE)]
    assert sorted(read + [each[0] for each in end.image.reads]) == [BASE + n * PAGE for n in range(70)]
    assert COUNTS.unpack(os.pread(end.window, COUNTS.size, 2 * HALF)) == (5, 24 + 64 * PAGE * 2 + 9 * PAGE + INLINE + 1)
    end.close()


@pytest.mark.parametrize(
    ("space", "start", "length"),
    [
        (PHYSICAL, BASE, 64 * PAGE),
        (USER, BASE, 64 * PAGE),
        (KERNEL, 0, 64 * PAGE),
        (KERNEL, BASE, INLINE),
        (KERNEL, TORN - 16 * PAGE + 2 * PAGE, 14 * PAGE + 100),
    ],
    ids=["physical", "user", "the first page", "small", "half a page at its end"],
)
def test_what_is_not_in_the_page_cache_is_answered_as_ever(space: int, start: int, length: int) -> None:
    end = End(cached=True)
    answer = end.ask(ONE.pack(1, space, 1, CACHED, 7, start, length))
    assert ANSWER.unpack_from(answer) == (1, 0, length, 0)
    data = os.pread(end.window, length, HALF) if length > INLINE else answer[ANSWER.size :]
    assert data == pattern(start, length)
    end.close()


def test_without_a_page_cache_the_window_is_used() -> None:
    end = End(cached=False)
    answer = end.ask(ONE.pack(1, KERNEL, 0, CACHED, 0, BASE, HALF))
    assert ANSWER.unpack(answer) == (1, 0, HALF, 0)
    assert os.pread(end.window, HALF, 0) == pattern(BASE, HALF)
    end.close()


def test_a_fault_of_ours_in_a_read_for_the_page_cache(capfd: pytest.CaptureFixture[str]) -> None:
    """Told to the log, and no end of the worker's; what can be read is read into the window."""
    end = End(cached=True)
    end.reader.cache.room = lambda page, count: 1 // 0
    assert ANSWER.unpack_from(end.ask(ONE.pack(1, KERNEL, 0, CACHED, 0, BASE, HALF))) == (1, 1, 0, 0)
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert end.read((BASE, 8)) == [pattern(BASE, 8)]
    end.close()


def test_what_cannot_be_read_is_not_said_to_be_in_the_page_cache() -> None:
    end = End(cached=True)
    answer = end.ask(ONE.pack(1, KERNEL, 0, CACHED, 0, HOLE - 4 * PAGE, 8 * PAGE))
    assert ANSWER.unpack_from(answer) == (1, 1, 0, 0)
    end.close()


def test_the_first_page_of_all_is_not_kept() -> None:
    """Its number is that of an empty slot."""
    end = End(cached=True)
    assert end.read((8, 8), (0, 3 * PAGE)) == [pattern(8, 8), pattern(0, 3 * PAGE)]
    assert end.reader.cache.find(0) is None
    assert end.reader.cache.find(1) is not None
    end.close()


def test_a_fault_of_ours_fails_that_range_alone(end: End, capfd: pytest.CaptureFixture[str]) -> None:
    assert end.read((1, 8), (666, 8), (2, 8), space=PHYSICAL) == [pattern(1, 8), None, pattern(2, 8)]
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_out_of_memory_is_not_answered(end: End) -> None:
    end.sock.send(ONE.pack(1, PHYSICAL, 0, 0, 0, 667, 8))
    with pytest.raises(MemoryError):
        serve(end.client, end.reader)


def test_requests_and_bytes_are_counted(end: End) -> None:
    end.read((BASE, 8), (HOLE, 8), (BASE, 100))
    end.read((BASE, 50_000))
    assert COUNTS.unpack(os.pread(end.window, COUNTS.size, 2 * HALF)) == (2, 50_108)


HOSTILE = {
    "nothing": b"",
    "a byte": b"x",
    "a header alone": REQUEST.pack(1, KERNEL, 0, 0, 0),
    "half a range": REQUEST.pack(1, KERNEL, 0, 0, 0) + bytes(RANGE.size - 1),
    "a range and a half": ONE.pack(1, KERNEL, 0, 0, 0, BASE, 8) + b"x",
    "no such space": ONE.pack(1, 4, 0, 0, 0, BASE, 8),
    "no such half": ONE.pack(1, KERNEL, 2, 0, 0, BASE, 8),
    "no such flag": ONE.pack(1, KERNEL, 0, CACHED + 1, 0, BASE, 8),
    "too long": ONE.pack(1, KERNEL, 0, 0, 0, BASE, HALF + 1),
    "longest": ONE.pack(1, KERNEL, 0, 0, 0, BASE, (1 << 32) - 1),
    "too long together": REQUEST.pack(1, KERNEL, 0, 0, 0) + RANGE.pack(BASE, HALF // 2 + 1) * 2,
    "too many": REQUEST.pack(1, KERNEL, 0, 0, 0) + RANGE.pack(BASE, 1) * (MOST_RANGES + 1),
    "far too many": REQUEST.pack(1, KERNEL, 0, 0, 0) + RANGE.pack(BASE, 1) * (MOST_RANGES + 1000),
}


@pytest.mark.parametrize("request_", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_request_ends_its_client(end: End, request_: bytes) -> None:
    end.sock.send(request_)
    assert not serve(end.client, end.reader)
    assert not end.image.reads


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    """Answered, or the end of this client; never an exception."""
    end = End(cached=True)
    end.sock.send(data)
    serve(end.client, end.reader)
    end.close()


@given(st.integers(0, 3), st.integers(-(1 << 31), (1 << 31) - 1), st.integers(0, (1 << 64) - 1), st.integers(0, HALF))
def test_any_read(space: int, pid: int, address: int, length: int) -> None:
    end = End(cached=True)
    end.ask(ONE.pack(1, space, 0, 0, pid, address, min(length, 64)))
    end.close()


def test_the_most_that_may_be_asked_for(end: End) -> None:
    ranges = [(BASE + n * 8, HALF // MOST_RANGES) for n in range(MOST_RANGES)]
    assert REQUEST.size + len(ranges) * RANGE.size == MOST_REQUEST
    assert end.read(*ranges) == [pattern(*each) for each in ranges]


def test_a_client_that_takes_no_answers_is_dropped_without_a_wait(end: End) -> None:
    request = ONE.pack(1, KERNEL, 0, 0, 0, BASE, INLINE)
    served = 0
    while served < 10_000:
        end.sock.send(request)
        if not serve(end.client, end.reader):
            break
        served += 1
    assert 0 < served < 1000


def test_a_client_that_has_gone(end: End) -> None:
    end.sock.send(ONE.pack(1, KERNEL, 0, 0, 0, BASE, 8))
    end.sock.close()
    assert not serve(end.client, end.reader)


def test_a_long_request_is_done_in_steps(end: End) -> None:
    """So that others get their turn: of bytes, if it takes long, and of ranges."""
    end.image.pause = 2e-3
    for request in (
        ONE.pack(1, KERNEL, 0, 0, 0, BASE + 5, HALF),
        REQUEST.pack(1, KERNEL, 0, 0, 0) + b"".join(RANGE.pack(BASE + n * 8, 1) for n in range(MOST_RANGES)),
    ):
        end.sock.send(request)
        job = end.client.take(end.reader)
        assert len(list(job)) >= 5
        assert end.sock.recv(1 << 20)
