"""Walks of lists that change while they are walked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.live_chain import Chain, Link

HEAD, GONE = 0, -1


class Memory:
    """A doubly linked list as the kernel keeps it: entries join at the end; what is taken out keeps its ``next``."""

    def __init__(self, count: int) -> None:
        self.next, self.prev, self.born = {HEAD: HEAD}, {HEAD: HEAD}, {HEAD: 0}
        self.clock = 0
        self.steps: list[tuple[str, int]] = []
        for address in range(1, count + 1):
            self.add(address)
        self.always = set(self.entries())

    def entries(self) -> list[int]:
        found, at = [], self.next[HEAD]
        while at != HEAD:
            found.append(at)
            at = self.next[at]
        return found

    def add(self, address: int) -> None:
        last = self.prev[HEAD]
        self.clock += 1
        self.next[address], self.prev[address], self.born[address] = HEAD, last, self.clock
        self.next[last] = self.prev[HEAD] = address

    def remove(self, address: int) -> None:
        before, after = self.prev[address], self.next[address]
        self.next[before], self.prev[after] = after, before
        self.prev[address] = GONE
        self.always.discard(address)

    def step(self) -> None:
        """Do one of the changes, if there are more."""
        if not self.steps:
            return
        what, number = self.steps.pop()
        entries = self.entries()
        free = [address for address in self.prev if self.prev[address] == GONE]
        if what == "remove" and entries:
            self.remove(entries[number % len(entries)])
        elif what == "reuse" and free:
            self.add(free[number % len(free)])
        elif what == "new":
            self.add(max(self.prev) + 1)

    def read(self, address: int) -> Link:
        self.step()
        if address not in self.prev:
            raise error(Reason.NOT_MAPPED, "no such entry", address=address & 2**64 - 1)
        return Link(self.next[address], self.prev[address], self.born[address])


def test_a_list_that_stands_still() -> None:
    assert Chain(HEAD, Memory(5).read, 100, "the list").walk() == [1, 2, 3, 4, 5]
    assert Chain(HEAD, Memory(0).read, 100, "the list").walk() == []


changes = st.lists(st.tuples(st.sampled_from(["remove", "remove", "reuse", "reuse", "new"]), st.integers(0, 50)))


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 12), changes)
def test_what_was_there_all_the_time_is_found_once_and_in_order(count: int, steps: list[tuple[str, int]]) -> None:
    memory = Memory(count)
    memory.steps = steps
    found = Chain(HEAD, memory.read, 1000, "the list").walk()
    kept = [address for address in found if address in memory.always]
    assert kept == sorted(memory.always)
    assert len(found) == len(set(found))


def test_an_entry_whose_memory_became_another_is_left() -> None:
    memory = Memory(3)
    reads = iter(range(100))

    def read(address: int) -> Link:
        if next(reads) == 2:  # the walk stands at 1, has read 2, and 2 moves to the end
            memory.remove(2)
            memory.add(2)
        return memory.read(address)

    assert Chain(HEAD, read, 100, "the list").walk() == [1, 3, 2]


def test_a_list_that_never_stands_still() -> None:
    memory = Memory(2)

    def read(address: int) -> Link:
        memory.add(max(memory.prev) + 1)
        return memory.read(address)

    with pytest.raises(KvmError) as caught:
        Chain(HEAD, read, 50, "the list").walk()
    assert caught.value.reason is Reason.CHANGED
    assert "the list changed" in caught.value.message


def test_a_circle_ends() -> None:
    links = {0: Link(1, 3), 1: Link(2, 0), 2: Link(1, 1)}  # 2 leads back to 1, whose prev is 0
    with pytest.raises(KvmError) as caught:
        Chain(0, links.__getitem__, 50, "the list").walk()
    assert caught.value.reason is Reason.CHANGED


def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 5))
    monkeypatch.setattr("kvmd.images.linux.live_chain.time.monotonic", lambda: next(clock))
    with pytest.raises(KvmError) as caught:
        Chain(HEAD, Memory(100).read, 10_000, "the list").walk()
    assert caught.value.reason is Reason.CHANGED
