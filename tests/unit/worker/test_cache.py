"""The page cache: what the worker puts in is what a reader of libkvm's gets, and never anything else."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd import fast
from kvmd.fast import PAGE, WAYS
from kvmd.worker.cache import PageCache
from libkvm.fast.pages import Pages
from procs import eventually

BASE = 0xFFFF888000000000 >> 12
SLOTS = 512
RIVAL = 1 << 25  # as far from one another as pages are that have the same slots


def content(page: int) -> bytes:
    return page.to_bytes(8, "little") * (PAGE // 8)


@pytest.fixture
def memory() -> Iterator[int]:
    fd = os.memfd_create("test")
    os.ftruncate(fd, fast.cache_size(SLOTS))
    yield fd
    os.close(fd)


@pytest.fixture
def both(memory: int) -> tuple[PageCache, Pages]:
    size = fast.cache_size(SLOTS)
    return PageCache(memory, size), Pages(memory, size)


@given(st.integers(0, 1 << 40))
def test_slots_fit_into_the_size_and_are_a_power_of_two(size: int) -> None:
    count = fast.slots(size)
    assert fast.cache_size(count) <= size
    assert count & (count - 1) == 0
    if count:
        assert count % WAYS == 0
        assert count * 8 % PAGE == 0  # the pages behind the tags begin at a page
        assert fast.cache_size(2 * count) > size


@given(st.integers(1, (1 << 52) - 1), st.integers(0, 1 << 40))
def test_a_tag_is_never_an_empty_slot_s_and_tells_its_page(page: int, sequence: int) -> None:
    word = fast.tag(page, sequence)
    assert 0 < word < 1 << 64
    assert fast.tagged(word) == page
    assert word != fast.tag(page, sequence + 1)
    assert len({place % SLOTS for place in fast.places(page, SLOTS)}) == WAYS


def test_what_was_put_in_is_read(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    assert pages.read(BASE << 12, 8) is None
    cache.put(BASE, content(BASE))
    assert pages.read(BASE << 12, 8) == content(BASE)[:8]
    assert pages.read((BASE << 12) + 5, 100) == content(BASE)[5:105]
    assert pages.read(BASE << 12, PAGE) == content(BASE)
    assert pages.read(BASE << 12, 0) == b""


def test_a_read_over_the_end_of_a_page_needs_the_next(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    cache.put(BASE, content(BASE))
    address = (BASE + 1 << 12) - 4
    assert pages.read(address, 8) is None
    cache.put(BASE + 1, content(BASE + 1))
    assert pages.read(address, 8) == content(BASE)[-4:] + content(BASE + 1)[:4]
    assert pages.read(BASE << 12, 2 * PAGE) == content(BASE) + content(BASE + 1)


@pytest.mark.parametrize("address", [0, 8, -1, 1 << 64, (1 << 64) - 1, 1 << 80])
def test_addresses_that_can_not_be_there(both: tuple[PageCache, Pages], address: int) -> None:
    assert both[1].read(address, 8) is None


@pytest.mark.parametrize("length", [-1, -PAGE, 1 << 70])
def test_lengths_that_make_no_sense(both: tuple[PageCache, Pages], length: int) -> None:
    both[0].put(BASE, content(BASE))
    assert both[1].read(BASE << 12, length) is None


def test_whole_pages_of_a_range_are_taken_in(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    data = b"".join(content(BASE + n) for n in range(5))
    cache.fill((BASE << 12) + 8, memoryview(data)[8 : 4 * PAGE + 100])
    held = [n for n in range(5) if pages.read(BASE + n << 12, 1) is not None]
    assert held == [1, 2, 3]
    assert pages.read(BASE + 1 << 12, 3 * PAGE) == data[PAGE : 4 * PAGE]


def test_a_full_set_gives_up_what_came_first(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    rivals = [BASE + n * RIVAL for n in range(WAYS + 1)]
    assert len({frozenset(place % SLOTS for place in fast.places(page, SLOTS)) for page in rivals}) == 1
    for page in rivals:
        cache.put(page, content(page))
    [gone] = [page for page in rivals if cache.find(page) is None]
    assert pages.read(gone << 12, 8) is None
    for page in set(rivals) - {gone}:
        assert pages.read(page << 12, PAGE) == content(page)


def test_a_slot_that_was_noted_is_not_read_after_it_was_given_to_another(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    first = BASE
    cache.put(first, content(first))
    assert pages.read(first << 12, 8) is not None  # noted
    rival = BASE
    while cache.find(first) is not None:
        rival += RIVAL
        cache.put(rival, content(rival))
    assert pages.read(first << 12, 8) is None
    cache.put(first, content(first))  # in another slot now
    assert pages.read(first << 12, 8) == content(first)[:8]


def test_the_worker_s_word_on_a_slot_is_checked(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    slot = cache.put(BASE, content(BASE))
    for wrong in (slot + 1, SLOTS, 1 << 40):
        pages.note(BASE, wrong)
    assert not pages._found
    pages.note(BASE, slot)
    assert pages._found


def test_more_pages_than_there_is_room_for(both: tuple[PageCache, Pages]) -> None:
    """Whatever is thrown out, what is found is right; notes stay bounded."""
    cache, pages = both
    picked = random.Random(1)
    for _ in range(4 * SLOTS):
        page = BASE + picked.randrange(4 * SLOTS)
        if cache.find(page) is None:
            cache.put(page, content(page))
        page = BASE + picked.randrange(4 * SLOTS)
        data = pages.read(page << 12, 8)
        assert data is None or data == content(page)[:8]
    assert len(pages._found) <= SLOTS + 1
    assert len(cache._at) <= SLOTS


@contextmanager
def watched(pages: Pages, whole: dict[int, bytes]) -> Iterator[None]:
    """Reads go on all the time from several threads: each finds nothing or the whole, and both happen."""
    found: set[object] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for page, expected in whole.items():
                data = pages.read(page << 12, len(expected))
                found.add(None if data is None else data == expected)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    yield
    eventually(lambda: len(found) > 1, 20)
    done.set()
    for reader in readers:
        reader.join()
    assert found == {None, True}


def test_readers_never_see_a_torn_page(both: tuple[PageCache, Pages]) -> None:
    """One writer throws pages out of a single set as fast as it can while others read them."""
    cache, pages = both
    rivals = {page: content(page) for page in (BASE + n * RIVAL for n in range(3 * WAYS))}
    with watched(pages, rivals):
        for _ in range(60):
            for page, whole in rivals.items():
                if cache.find(page) is None:
                    cache.put(page, whole)


def test_readers_never_see_a_torn_run(both: tuple[PageCache, Pages]) -> None:
    """The same of runs, which drive one another out at once."""
    cache, pages = both
    count = 32
    places = (BASE + n * RIVAL for n in range(3 * WAYS))
    rivals = {page: b"".join(content(page + n) for n in range(count)) for page in places}
    with watched(pages, rivals):
        for _ in range(20):
            for page, whole in rivals.items():
                cache.fill(page << 12, memoryview(whole))
                assert cache.find(page + count - 1) is not None


def test_a_run_goes_where_there_is_room(both: tuple[PageCache, Pages]) -> None:
    """Each to another of its places, before the first drives another out."""
    cache, pages = both
    rivals = [BASE + n * RIVAL for n in range(WAYS)]
    for page in rivals:
        cache.fill(page << 12, memoryview(b"".join(content(page + n) for n in range(20))))
    for page in rivals:
        assert pages.read(page << 12, 20 * PAGE) == b"".join(content(page + n) for n in range(20))
    cache.fill(BASE + WAYS * RIVAL << 12, memoryview(bytes(20 * PAGE)))
    assert sum(pages.read(page << 12, 20 * PAGE) is None for page in rivals) == 1


@given(st.integers(1, 60), st.integers(1, 40), st.sets(st.integers(0, 100)))
def test_what_is_missing(first: int, count: int, here: set[int]) -> None:
    fd = os.memfd_create("test")
    os.ftruncate(fd, fast.cache_size(SLOTS))
    cache = PageCache(fd, fast.cache_size(SLOTS))
    os.close(fd)
    for page in here:
        cache.fill(page << 12, memoryview(content(page)))
    found = list(cache.missing(first, count))
    pages = [page + n for page, size in found for n in range(size)]
    assert pages == [page for page in range(first, first + count) if page not in here]
    assert all(low + size < high for (low, size), (high, _) in pairwise(found))


def test_after_the_end_nothing_is_read(memory: int) -> None:
    """Not even what the reader knows the place of."""
    ended = [0]
    cache = PageCache(memory, fast.cache_size(SLOTS))
    pages = Pages(memory, fast.cache_size(SLOTS), ended)
    cache.fill(BASE << 12, memoryview(content(BASE) + content(BASE + 1)))
    assert pages.read(BASE << 12, 8)
    assert pages.read(BASE << 12, 2 * PAGE)
    ended[0] = 1
    assert pages.read(BASE << 12, 8) is None
    assert pages.read(BASE << 12, 2 * PAGE) is None


@given(st.binary(min_size=64, max_size=4096), st.integers(0, (1 << 64) - 1), st.integers(0, 3 * PAGE))
def test_rubbish_in_the_shared_memory_is_no_danger(rubbish: bytes, address: int, length: int) -> None:
    """A worker that has been taken over may write anything: a reader gets bytes of the right length, or nothing."""
    count = SLOTS
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, fast.cache_size(count))
        os.pwrite(fd, (rubbish * 64)[: count * 8], 0)
        slot = fast.places(address >> 12, count)[0]
        os.pwrite(fd, fast.tag(address >> 12, 1).to_bytes(8, "little"), slot * 8)
        pages = Pages(fd, fast.cache_size(count))
        data = pages.read(address, length)
        assert data is None or len(data) == length
    finally:
        os.close(fd)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3 * SLOTS), st.integers(1, 40), st.booleans()), max_size=30))
def test_runs_of_pages(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is taken in, at once or by the page, over and under what was there: what is found is right."""
    fd = os.memfd_create("test")
    try:
        os.ftruncate(fd, fast.cache_size(SLOTS))
        cache, pages = (kind(fd, fast.cache_size(SLOTS)) for kind in (PageCache, Pages))
        for start, count, whole in steps:
            data = b"".join(content(BASE + start + n) for n in range(count))
            if whole:
                cache.fill(BASE + start << 12, memoryview(data))
            elif cache.find(BASE + start) is None:
                cache.put(BASE + start, content(BASE + start))
            assert pages.read(BASE + start << 12, PAGE) == content(BASE + start)
            found = pages.read((BASE + start << 12) + 9, count * PAGE - 20)
            assert found is None or found == data[9:-11]
            into = bytearray(count * PAGE - 20)
            done = cache.copy((BASE + start << 12) + 9, memoryview(into))
            assert done >= min(PAGE - 9, len(into))
            assert bytes(into) == data[9 : 9 + done] + bytes(len(into) - done)
            assert len(set(cache._at.values())) == len(cache._at)
            assert all(cache._held[slot] == page for page, slot in cache._at.items())
    finally:
        os.close(fd)


def test_a_run_is_read_at_once_and_over_the_end_of_the_slots(both: tuple[PageCache, Pages]) -> None:
    cache, pages = both
    data = b"".join(content(BASE + n) for n in range(SLOTS))
    for at in range(0, SLOTS, 100):
        cache.fill(BASE + at << 12, memoryview(data)[at * PAGE : (at + 100) * PAGE])
    assert pages.read(BASE << 12, SLOTS * PAGE) == data
    assert pages.read((BASE << 12) + 5, SLOTS * PAGE - 10) == data[5:-5]
    assert pages.read(BASE << 12, SLOTS * PAGE + 1) is None
    first = next(n for n in range(SLOTS) if cache.find(BASE + n) == SLOTS - 1)
    into = bytearray(4 * PAGE)
    assert cache.copy((BASE + first << 12) + 7, memoryview(into)) == PAGE - 7
    assert into[: PAGE - 7] == content(BASE + first)[7:]
    assert cache.copy(BASE - 1 << 12, memoryview(into)) == 0


@pytest.mark.parametrize(("address", "length"), [(0, 3 * PAGE), (8, 2 * PAGE), (0, PAGE), (0, 0), (5, 3)])
def test_the_first_page_of_all_is_left_out_of_a_run(both: tuple[PageCache, Pages], address: int, length: int) -> None:
    cache, pages = both
    data = b"".join(content(n) for n in range(4))
    cache.fill(address, memoryview(data)[address : address + length])
    assert cache.find(0) is None
    assert pages.read(0, 8) is None
    for page in range(1, (address + length) // PAGE):
        assert pages.read(page << 12, PAGE) == content(page)
