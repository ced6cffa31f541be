"""The function for very many small reads: never another byte, or error, than read()'s."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from kvmd.errors import KvmError, Reason, error
from kvmd.fast import cache_size
from kvmd.worker.cache import PageCache
from libkvm.fast.pages import Pages
from libkvm.fast.reader import reader

PAGE = 4096
BASE = 0xFFFF888000000000
DATA = random.Random(3).randbytes(16 * PAGE)


class Cached:
    """16 pages behind a cache of their own; counts the reads that come this far."""

    def __init__(self, slots: int = 1024) -> None:
        self.fd = os.memfd_create("pages")
        size = cache_size(slots)
        os.ftruncate(self.fd, size)
        self.cache, self.size = PageCache(self.fd, size), size
        self.ended = [0]
        self.pages: Pages | None = Pages(self.fd, size, self.ended)
        self.reads = 0

    def read(self, address: int, length: int) -> bytes:
        self.reads += 1
        at = address - BASE
        if not 0 <= at <= at + length <= len(DATA):
            raise error(Reason.NOT_MAPPED, "not mapped", address=address)
        for page in range(address >> 12, address + length + PAGE - 1 >> 12):
            if self.cache.find(page) is None:
                where = (page << 12) - BASE
                self.cache.put(page, DATA[where : where + PAGE])
        if self.pages is not None and (found := self.pages.read(address, length)) is not None:
            return found
        return DATA[at : at + length]


@pytest.fixture
def memory() -> Iterator[Cached]:
    made = Cached()
    yield made
    os.close(made.fd)


def test_hits_do_not_come_this_far(memory: Cached) -> None:
    read = reader(memory, lambda: memory.pages)
    for at in range(0, len(DATA), 64):
        assert read(BASE + at, 8) == DATA[at : at + 8]
    assert memory.reads == 16
    assert read(BASE + 5, 1, 77, True) == DATA[5:6]
    assert memory.reads == 16


def test_any_reads_are_those_of_read(memory: Cached) -> None:
    read, picked = reader(memory, lambda: memory.pages), random.Random(1)
    for _ in range(3000):
        at, length = picked.randrange(-10, len(DATA) + 10), picked.choice([0, 1, 8, 100, PAGE, 5000])
        try:
            expected: bytes | Reason = memory.read(BASE + at, length)
        except KvmError as e:
            expected = e.reason
        try:
            found: bytes | Reason = read(BASE + at, length)
        except KvmError as e:
            found = e.reason
        assert found == expected


def test_a_page_that_was_given_up_is_asked_for(memory: Cached) -> None:
    read = reader(memory, lambda: memory.pages)
    assert read(BASE, 8) == DATA[:8]
    slot = memory.cache.find(BASE >> 12)
    assert slot is not None
    memory.cache._tags[slot] = 0
    memory.cache._pages[slot * PAGE : slot * PAGE + 8] = b"another!"
    assert read(BASE, 8) == DATA[:8]


def test_the_end_of_the_link_is_the_end(memory: Cached) -> None:
    read = reader(memory, lambda: memory.pages)
    assert read(BASE, 8) == read(BASE, 8)
    before = memory.reads
    memory.ended[0] = 1
    assert read(BASE, 8) == DATA[:8]
    assert memory.reads == before + 1


def test_another_cache_takes_the_place_of_the_first(memory: Cached) -> None:
    read = reader(memory, lambda: memory.pages)
    read(BASE, 8)
    other = Cached()
    memory.ended[0] = 1
    memory.cache, memory.pages = other.cache, other.pages
    read(BASE, 8)
    before = memory.reads
    assert read(BASE + 16, 8) == DATA[16:24]
    assert memory.reads == before
    os.close(other.fd)


def test_without_a_cache_all_is_asked_for(memory: Cached) -> None:
    memory.pages = None
    read = reader(memory, lambda: memory.pages)
    assert [read(BASE, 8) for _ in range(3)] == [DATA[:8]] * 3
    assert memory.reads == 3
