"""The client's end of the fast path: against the worker's own, and against ends that lie."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from kvmd.errors import Reason, error
from kvmd.fast import ANSWER, CACHED, HALF, INLINE, MOST_RANGES, ONE, WINDOW, cache_size
from kvmd.worker.cache import PageCache
from kvmd.worker.fast import Client, Reader
from libkvm.fast.link import BrokenLinkError, Link
from libkvm.fast.pages import Pages
from procs import eventually

BASE = 0xFFFF888000000000
END = BASE + (8 << 20)
DATA = random.Random(1).randbytes(8 << 20)


class Memory:
    """8 MiB of kernel memory, with nothing behind it."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    def read_into(self, address: int, into: memoryview, space: int) -> bool:
        return False

    def read(self, address: int, length: int, space: int, pid: int = 0) -> bytes:
        self.reads.append((address, length))
        if not BASE <= address <= address + length <= END:
            raise error(Reason.NOT_MAPPED, "nothing there")
        return DATA[address - BASE : address - BASE + length]


class Pair:
    """A link, and the other end of it."""

    def __init__(self, slots: int = 0) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.fd = os.memfd_create("window")
        os.ftruncate(self.fd, WINDOW)
        self.image, self.cache, pages = Memory(), None, None
        if slots:
            fd, size = os.memfd_create("cache"), cache_size(slots)
            os.ftruncate(fd, size)
            self.cache, pages = PageCache(fd, size), Pages(fd, size)
            os.close(fd)
        self.link = Link(ours, Link.map(self.fd), pages)
        self.thread: threading.Thread | None = None

    def worker(self) -> Link:
        """Have the other end be a worker's."""
        client, reader = Client(self.theirs, self.fd), Reader(self.image)
        reader.cache = self.cache
        self.theirs.setblocking(True)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while (job := client.take(reader)) is not None:
                    for _ in job:
                        pass
            client.close()

        self.thread = threading.Thread(target=serve)
        self.thread.start()
        return self.link

    def liar(self, answer: Callable[[bytes], bytes]) -> Link:
        """Have the other end give one answer, whatever it is asked."""

        def lie() -> None:
            request = self.theirs.recv(1 << 20)
            if request:
                self.theirs.send(answer(request) or b"\0")

        self.thread = threading.Thread(target=lie)
        self.thread.start()
        return self.link

    def close(self) -> None:
        self.link.drop()
        if self.thread is not None:
            self.thread.join(10)
        self.theirs.close()
        os.close(self.fd)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


@pytest.fixture(params=[0, 512, 4096], ids=["no cache", "a small cache", "a cache"])
def caching(request: pytest.FixtureRequest) -> Iterator[Pair]:
    made = Pair(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("length", [0, 1, 8, 5000, INLINE, INLINE + 1, 300_000, HALF])
def test_reads_of_every_size(pair: Pair, length: int) -> None:
    link = pair.worker()
    assert link.read(BASE + 7, length, 1, 0, 5.0) == DATA[7:][:length]
    into = bytearray(length)
    assert link.readinto(BASE + 9, memoryview(into), 1, 0, 5.0)
    assert into == DATA[9:][:length]


@pytest.mark.parametrize("length", [8, INLINE, INLINE + 1, HALF])
def test_what_can_not_be_read(pair: Pair, length: int) -> None:
    link = pair.worker()
    assert link.read(END - 4, length, 1, 0, 5.0) is None
    assert not link.readinto(END - 4, memoryview(bytearray(length)), 1, 0, 5.0)
    assert link.read(BASE, 8, 1, 0, 5.0) == DATA[:8]
    assert link.open


def test_what_is_lent_is_not_written_over(pair: Pair) -> None:
    """Other reads take the other half; where both are lent, there is no room for large ones."""
    link = pair.worker()
    many = [(BASE + n * 900, 100) for n in range(1000)]
    pieces = [DATA[n * 900 :][:100] for n in range(1000)]
    loan = link.lend(BASE + 5, HALF, 1, 0, 5.0)
    assert loan is not None
    with loan as first:
        for _ in range(2):
            assert link.read(BASE + 77, HALF, 1, 0, 5.0) == DATA[77:][:HALF]
            assert link.readv(many, 1, 0, 5.0) == pieces
        other = link.lend(BASE + HALF, HALF, 1, 0, 5.0)
        assert other is not None
        with other as second:
            assert link.lend(BASE, HALF, 1, 0, 5.0) is None
            assert link.read(BASE, HALF, 1, 0, 5.0) is None
            assert link.readv(many, 1, 0, 5.0) == [None] * 1000
            assert link.read(BASE, INLINE, 1, 0, 5.0) == DATA[:INLINE]
            assert second == DATA[HALF : 2 * HALF]
        assert link.read(BASE, HALF, 1, 0, 5.0) == DATA[:HALF]
        assert first == DATA[5:][:HALF]
    with pytest.raises(ValueError, match="released"):
        first[0]


@pytest.mark.parametrize("length", [1, INLINE, INLINE + 1, HALF])
def test_loans_of_every_size(caching: Pair, length: int) -> None:
    link = caching.worker()
    for at in range(0, len(DATA) - length, HALF):
        loan = link.lend(BASE + at, length, 1, 0, 5.0)
        assert loan is not None
        with loan as view:
            assert view == DATA[at:][:length]
    assert link.lend(END - length + 1, length, 1, 0, 5.0) is None
    assert link.read(BASE, HALF, 1, 0, 5.0) == DATA[:HALF]


def test_loans_that_follow_one_another_are_asked_for_ahead(pair: Pair) -> None:
    link = pair.worker()
    for at in range(0, len(DATA), HALF):
        loan = link.lend(BASE + at, HALF, 1, 0, 5.0)
        assert loan is not None
        with loan as view:
            assert view == DATA[at:][:HALF]
    asked = list(range(BASE, END + 1, HALF))  # the last of them by nobody yet, so that it may be under way
    eventually(lambda: [at for at, _ in pair.image.reads if not (at - BASE) % HALF] == asked, 5)


def test_many_ranges(pair: Pair) -> None:
    link = pair.worker()
    ranges = [(BASE + n * 900, n % 200) for n in range(MOST_RANGES)]
    ranges[5] = ranges[77] = (END, 8)
    expected = [DATA[at - BASE : at - BASE + length] if at < END else None for at, length in ranges]
    assert link.readv(ranges, 1, 0, 5.0) == expected
    assert link.readv(ranges[:10], 1, 0, 5.0) == expected[:10]


def test_large_reads_of_all_there_is(caching: Pair) -> None:
    """More than a small cache has room for, one after the other and then anywhere; with what can't be read between."""
    link, picked = caching.worker(), random.Random(6)
    assert b"".join(link.read(BASE + n * HALF, HALF, 1, 0, 5.0) or b"" for n in range(8)) == DATA
    for _ in range(60):
        at, length = picked.randrange(7 << 20), picked.randint(INLINE, HALF)
        into = bytearray(length)
        assert link.readinto(BASE + at, memoryview(into), 1, 0, 5.0)
        assert into == DATA[at : at + length]
        assert link.read(BASE + at, length, 1, 0, 5.0) == into
        assert link.read(END - 5000, length, 1, 0, 5.0) is None


def test_what_is_in_the_cache_is_taken_from_there() -> None:
    with contextlib.closing(Pair(4096)) as pair:
        link = pair.worker()
        assert b"".join(link.read(BASE + n * HALF, HALF, 1, 0, 5.0) or b"" for n in range(8)) == DATA
        assert not any(os.pread(pair.fd, 2 * HALF, 0))
    assert sum(length for address, length in pair.image.reads if address < END) == len(DATA)


def test_what_is_not_in_the_cache_any_more_is_asked_for_again() -> None:
    asked: list[bytes] = []
    with contextlib.closing(Pair(512)) as pair:
        os.pwrite(pair.fd, DATA[:HALF], 0)

        def given_up() -> None:
            for _ in range(2):
                asked.append(pair.theirs.recv(100))
                pair.theirs.send(ANSWER.pack(len(asked), 0, HALF, 1))

        pair.thread = threading.Thread(target=given_up)
        pair.thread.start()
        assert pair.link.read(BASE, HALF, 1, 0, 5.0) == DATA[:HALF]
    assert asked == [ONE.pack(n, 1, 0, flags, 0, BASE, HALF) for n, flags in ((1, CACHED), (2, 0))]


def test_reads_that_follow_one_another_are_asked_for_ahead(pair: Pair) -> None:
    link = pair.worker()
    got = [link.read(BASE + n * HALF, HALF, 1, 0, 5.0) for n in range(8)]
    assert b"".join(got) == DATA
    assert len(pair.image.reads) == len(set(pair.image.reads))  # nothing twice
    assert link._ahead is not None
    assert link._ahead.what[0] == END
    assert link.read(END, HALF, 1, 0, 5.0) is None  # asked for ahead, too
    assert link.read(BASE, HALF, 1, 0, 5.0) == DATA[:HALF]


def test_other_reads_between_those_that_follow_one_another(pair: Pair) -> None:
    """What was asked for ahead is neither lost, nor overwritten, nor taken for something else."""
    link, picked = pair.worker(), random.Random(2)
    at = 0
    for _ in range(200):
        choice = picked.randrange(6)
        if choice < 3:
            length = 100_000
            assert link.read(BASE + at, length, 1, 0, 5.0) == DATA[at:][:length]
            at = (at + length) % (7 << 20)
        elif choice == 3:
            assert link.read(BASE + at + 5, 8, 1, 0, 5.0) == DATA[at + 5 :][:8]
        elif choice == 4:
            assert link.readv([(BASE + 3, 50_000), (BASE, 9)], 1, 0, 5.0) == [DATA[3:50_003], DATA[:9]]
        else:
            assert link.read(BASE + 1, 30_000, 1, 0, 5.0) == DATA[1:30_001]


def test_ahead_over_the_end_of_the_address_space(pair: Pair) -> None:
    link = pair.worker()
    for _ in range(3):
        assert link.read((1 << 64) - 100_000, 100_000, 1, 0, 5.0) is None
    link._end = ((1 << 64) - 100_000, 1, 0)
    assert link.read((1 << 64) - 100_000, 100_000, 1, 0, 5.0) is None
    assert link.open


LIES = {
    "nothing": lambda request: b"",
    "short": lambda request: b"\0" * (ANSWER.size - 1),
    "another's": lambda request: ANSWER.pack(99, 0, 8, 0) + bytes(8),
    "too few": lambda request: ANSWER.pack(1, 0, 7, 0) + bytes(7),
    "too many": lambda request: ANSWER.pack(1, 0, 9, 0) + bytes(9),
    "less than it says": lambda request: ANSWER.pack(1, 0, 8, 0) + bytes(3),
    "more than it says": lambda request: ANSWER.pack(1, 0, 8, 0) + bytes(30),
    "huge": lambda request: ANSWER.pack(1, 0, (1 << 32) - 1, 0),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_an_answer_that_is_none_ends_the_link(pair: Pair, lie: Callable[[bytes], bytes]) -> None:
    link = pair.liar(lie)
    with pytest.raises(BrokenLinkError):
        link.read(BASE, 8, 1, 0, 5.0)
    assert not link.open
    with pytest.raises(BrokenLinkError):
        link.read(BASE, 8, 1, 0, 5.0)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER.pack(1, 0, 0, 0),
        ANSWER.pack(1, 0, WINDOW, 0),
        ANSWER.pack(1, 0, (1 << 32) - 1, 0),
        ANSWER.pack(1, (1 << 32) - 1, 20_000, 0),
        ANSWER.pack(1, 5, 16, 0) + bytes(16),
        ANSWER.pack(1, 1, 16, 0) + struct.pack("<I", 0) + bytes(16),
        ANSWER.pack(1, 0, 16, 0) + bytes(15),
        ANSWER.pack(1, 0, 16, 0) + bytes(17),
    ],
)
def test_an_answer_to_many_ranges_that_is_none(pair: Pair, answer: bytes) -> None:
    link = pair.liar(lambda request: answer)
    with pytest.raises(BrokenLinkError):
        link.readv([(BASE, 8), (BASE, 8)], 1, 0, 5.0)
    assert not link.open


@pytest.mark.parametrize("size", [0, INLINE, HALF - 1, HALF + 1, WINDOW, (1 << 32) - 1])
def test_a_large_answer_of_another_length(pair: Pair, size: int) -> None:
    link = pair.liar(lambda request: ANSWER.pack(1, 0, size, 0))
    with pytest.raises(BrokenLinkError):
        link.read(BASE, HALF, 1, 0, 5.0)


def test_a_slot_that_is_none_is_not_looked_at(pair: Pair) -> None:
    link = pair.liar(lambda request: ANSWER.pack(1, 0, 8, (1 << 32) - 1) + bytes(8))
    assert link.read(BASE, 8, 1, 0, 5.0) == bytes(8)


def test_an_end_that_is_gone(pair: Pair) -> None:
    pair.theirs.close()
    with pytest.raises(BrokenLinkError):
        pair.link.read(BASE, 8, 1, 0, 5.0)


def test_an_answer_that_does_not_come_in_time(pair: Pair) -> None:
    with pytest.raises(TimeoutError):
        pair.link.read(BASE, 8, 1, 0, 0.1)
    assert not pair.link.open


def test_a_turn_that_does_not_come_in_time(pair: Pair) -> None:
    pair.link._lock.acquire()
    with pytest.raises(TimeoutError):
        pair.link.read(BASE, 8, 1, 0, 0.1)
    pair.link._lock.release()
    assert pair.link.open
    assert pair.worker().read(BASE, 8, 1, 0, 5.0) == DATA[:8]


def test_an_interrupt_in_the_middle_ends_the_link(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to what was asked may still come: nobody else must get it."""

    def interrupted(length: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pair.link, "_wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pair.link.read(BASE, 8, 1, 0, 5.0)
    assert not pair.link.open


def test_a_drop_wakes_who_waits(pair: Pair) -> None:
    outcome: list[object] = []

    def wait() -> None:
        try:
            pair.link.read(BASE, 8, 1, 0, 30.0)
        except BrokenLinkError as broken:
            outcome.append(broken)

    thread = threading.Thread(target=wait)
    thread.start()
    assert pair.theirs.recv(100) == ONE.pack(1, 1, 0, 0, 0, BASE, 8)
    pair.link.drop()
    thread.join(5)
    assert len(outcome) == 1
    assert pair.link._sock.fileno() == -1
    pair.link.drop()
