"""Lists and strings, of memory that may hold anything."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import ByteOrder
from kvmd.v1 import batch_pb2
from kvmd.worker.following import ListWalk, c_string, readable

BASE = 0xFFFF888000000000
MASK = (1 << 64) - 1


class Memory:
    """An image of a few bytes, by address; everything else is not mapped."""

    def __init__(self, places: Mapping[int, bytes], byte_order: ByteOrder = "little") -> None:
        self.byte_order = byte_order
        self.bytes = {at + n & MASK: byte for at, data in places.items() for n, byte in enumerate(data)}
        self.reads = 0

    def read(self, address: int, length: int, space: int = 1, pid: int = 0) -> bytes:
        assert 0 <= address < 1 << 64
        self.reads += 1
        found = bytearray()
        for at in range(address, address + length):
            if at not in self.bytes:
                raise error(Reason.NOT_MAPPED, "not mapped", address=at & MASK, readable=len(found))
            found.append(self.bytes[at])
        return bytes(found)


def word(value: int) -> bytes:
    return (value & MASK).to_bytes(8, "little")


def walk(memory: Memory, **request: int) -> tuple[list[tuple[int, bytes, str]], ListWalk, KvmError | None]:
    made = ListWalk(memory, batch_pb2.WalkListRequest(**request))
    found: list[tuple[int, bytes, str]] = []
    try:
        for element in made:
            found.append((element.address, element.data, element.error.reason))  # noqa: PERF401 - what came before a failure
    except KvmError as failure:
        return found, made, failure
    return found, made, None


def ring(count: int, link: int = 16, size: int = 64) -> tuple[Memory, list[int], int]:
    """A list of struct list_head: elements with their number at 0, a link at 16; the head comes last."""
    elements = [BASE + size * n for n in range(count)]
    head = BASE + size * count
    links = [head, *(each + link for each in elements)]
    places = {}
    for n, at in enumerate(links):
        places[at] = word(links[(n + 1) % len(links)]) + word(links[n - 1])
    for n, at in enumerate(elements):
        places[at] = word(n) + bytes(8)
    return Memory(places), elements, head


@pytest.mark.parametrize("length", [0, 8, 3000])
def test_a_ring_of_a_big_endian_machine(length: int) -> None:
    places = {BASE: (BASE + 64).to_bytes(8, "big"), BASE + 64: BASE.to_bytes(8, "big") + bytes(3000)}
    found, _, failure = walk(Memory(places, "big"), head=BASE, length=length)
    assert [address for address, _, _ in found] == [BASE + 64]
    assert failure is None


def test_a_ring_is_walked_forward_and_backward() -> None:
    memory, elements, head = ring(5)
    found, walked, failure = walk(memory, head=head, link=16, length=8)
    assert found == [(at, word(n), "") for n, at in enumerate(elements)]
    assert failure is None
    assert not walked.more
    assert memory.reads == 6
    found, _, _ = walk(memory, head=head, link=16, next=8, length=8)
    assert found == [(at, word(n), "") for n, at in reversed(list(enumerate(elements)))]


def test_an_empty_list_and_one_without_data() -> None:
    memory, _, head = ring(0)
    assert walk(memory, head=head, link=16, length=8)[0] == []
    memory, elements, head = ring(3)
    assert walk(memory, head=head, link=16)[0] == [(at, b"", "") for at in elements]


def test_a_chain_that_ends_with_null() -> None:
    memory = Memory({BASE: word(BASE + 100), BASE + 100: word(BASE + 200) + b"one", BASE + 200: word(0) + b"two"})
    assert walk(memory, head=BASE, offset=8, length=3)[0] == [(BASE + 100, b"one", ""), (BASE + 200, b"two", "")]


@pytest.mark.parametrize(("limit", "more"), [(1, True), (4, True), (5, False), (6, False)])
def test_no_more_than_are_wanted(limit: int, more: bool) -> None:
    memory, elements, head = ring(5)
    found, walked, failure = walk(memory, head=head, link=16, limit=limit)
    assert [at for at, _, _ in found] == elements[:limit]
    assert (walked.more, failure) == (more, None)


def test_a_circle_that_leaves_out_the_head_is_told_after_its_elements() -> None:
    memory, elements, head = ring(5)
    memory.bytes |= Memory({elements[4] + 16: word(elements[2] + 16)}).bytes
    found, _, failure = walk(memory, head=head, link=16)
    assert [at for at, _, _ in found] == elements
    assert failure is not None
    assert failure.reason is Reason.CORRUPT_DATA
    memory = Memory({BASE: word(BASE + 8), BASE + 8: word(BASE + 8)})
    assert [at for at, _, _ in walk(memory, head=BASE)[0]] == [BASE + 8]


def test_a_link_and_data_that_are_not_there() -> None:
    memory, elements, head = ring(3)
    del memory.bytes[elements[1] + 3]
    found, _, failure = walk(memory, head=head, link=16, length=8)
    assert found == [(elements[0], word(0), ""), (elements[1], b"\1\0\0", "NOT_MAPPED"), (elements[2], word(2), "")]
    assert failure is None
    del memory.bytes[elements[1] + 16]
    found, _, failure = walk(memory, head=head, link=16, length=8)
    assert [at for at, _, _ in found] == elements[:2]
    assert failure is not None
    assert failure.reason is Reason.NOT_MAPPED


def test_far_apart_are_two_reads() -> None:
    memory = Memory({BASE: word(BASE + 0x8000), BASE + 0x8000: word(0), BASE + 0x18000: b"far"})
    assert walk(memory, head=BASE, offset=0x10000, length=3)[0] == [(BASE + 0x8000, b"far", "")]


@given(
    st.dictionaries(st.integers(0, 15), st.integers(0, 15), max_size=16),
    st.sampled_from([0, 8, 1 << 63, MASK - 64]),
    st.integers(0, 40),
    st.integers(0, 20),
    st.integers(0, 200),
)
@settings(deadline=None)
def test_any_memory_comes_to_an_end(links: dict[int, int], base: int, link: int, limit: int, offset: int) -> None:
    memory = Memory({base + 8 * at: word(base + 8 * to) for at, to in links.items()})
    found, walked, failure = walk(memory, head=base, link=link, offset=offset, length=4, limit=limit)
    assert len(found) <= min(limit or 16, 16)
    assert len({at for at, _, _ in found}) == len(found)
    assert not (walked.more and failure)
    # The same by hand.
    expected, at = [], memory_word(memory, base)
    while at not in (None, 0, base) and at not in expected and (not limit or len(expected) < limit):
        expected.append(at)
        at = memory_word(memory, at)
    assert [each for each, _, _ in found] == [at - link & MASK for at in expected]


def memory_word(memory: Memory, at: int) -> int | None:
    found = [memory.bytes.get(at + n) for n in range(8)]
    return None if None in found else int.from_bytes(bytes(found), "little")


def test_strings() -> None:
    memory = Memory({BASE + 4090: b"across a page\0", BASE + 9000: b"cut", MASK - 3: b"end\0"})
    for address, most, expected in (
        (BASE + 4090, 100, (b"across a page", True, "")),
        (BASE + 4090, 13, (b"across a page", True, "")),
        (BASE + 4090, 12, (b"across a pag", False, "")),
        (BASE + 4103, 5, (b"", True, "")),
        (BASE + 9000, 3, (b"cut", False, "")),
        (BASE + 9000, 4, (b"cut", False, "NOT_MAPPED")),
        (BASE, 4, (b"", False, "NOT_MAPPED")),
        (MASK - 3, 10, (b"end", True, "")),
    ):
        found = c_string(memory.read, address, most)
        assert (found.data, found.whole, found.error.reason) == expected


@given(st.binary(max_size=60), st.integers(1, 70), st.integers(-70, 0))
def test_a_string_is_what_c_says(data: bytes, most: int, before: int) -> None:
    address = BASE + 4096 + before
    found = c_string(Memory({address: data}).read, address, most)
    wanted = data.partition(b"\0")[0][:most]
    assert found.data == wanted
    assert found.whole == (b"\0" in data[: most + 1])
    assert bool(found.error.reason) == (not found.whole and len(wanted) < most)


def test_what_is_readable() -> None:
    memory = Memory({BASE: b"abc"})
    assert readable(memory.read, BASE, 3) == (b"abc", None)
    data, failure = readable(memory.read, BASE, 9)
    assert data == b"abc"
    assert failure is not None
    assert readable(memory.read, BASE + 3, 1)[0] == b""
