"""Headers, trees and lists of the kernel's, by hand and bent: the right answer, or a typed error, and soon."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File
from kvmd.images.linux.mappings import Mappings
from kvmd.images.linux.swap import rbtree
from kvmd.images.linux.swap.extents import Extents
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.header import parse
from kvmd.images.linux.swap.reader import SwapReader
from kvmd.images.linux.swap.xarray import XArrays, value
from kvmd.images.linux.swapinfo import SwapAreas
from overlay import Overlay, reads
from tests.unit.images.conftest import Opener

PAGE = 4096
TYPED = {
    *(Reason.CORRUPT_DATA, Reason.NOT_MAPPED, Reason.BEYOND_DUMP, Reason.NOT_PRESENT, Reason.UNSUPPORTED),
    *(Reason.BAD_ARGUMENT, Reason.CORRUPT_PAGE, Reason.EXCLUDED, Reason.SHORT_FILE, Reason.SWAP_FOREIGN),
    *(Reason.TRUNCATED_IMAGE, Reason.UNSUPPORTED_FORMAT, Reason.CORRUPT_IMAGE),
}


def header(order: str = "<", last: int = 2047, bad: int = 0, version: int = 1, label: bytes = b"mine") -> bytes:
    page = bytearray(PAGE)
    struct.pack_into(order + "III16s16s", page, 1024, version, last, bad, bytes(range(16)), label)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_header(order: str) -> None:
    found = parse(header(order, 77, 2), PAGE, "x")
    assert (found.order, found.last_page, found.bad_pages, found.label) == (order, 77, 2, "mine")
    assert found.uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (header(version=2), "version"),
        (header(last=0), "makes no sense"),
        (header(last=5, bad=6), "makes no sense"),
        (bytes(PAGE - 10) + b"SWAPSPACE2" + bytes(12278) + b"SWAPSPACE2", "version"),
        (bytes(PAGE) + bytes(12278) + b"SWAPSPACE2", "pages of 16384 bytes, and the kernel's have 4096"),
        (bytes(PAGE), "no SWAPSPACE2"),
        (b"", "no SWAPSPACE2"),
    ],
)
def test_headers_that_are_refused(page: bytes, why: str) -> None:
    with pytest.raises(KvmError, match=why) as caught:
        parse(page, PAGE, "the file")
    assert caught.value.message.startswith("the file")


@given(st.binary(max_size=200), st.integers(0, PAGE - 200))
def test_noisy_headers(noise: bytes, at: int) -> None:
    page = bytearray(header())
    page[at : at + len(noise)] = noise
    try:
        parse(bytes(page), PAGE, "x")
    except KvmError as e:
        assert e.reason in TYPED


class Nodes:
    """A tree in a dictionary: address to (key, left, right)."""

    def __init__(self, keys: list[int]) -> None:
        self.nodes: dict[int, dict[str, Any]] = {}
        self.root = self._grow(sorted(keys))

    def _grow(self, keys: list[int]) -> int:
        if not keys:
            return 0
        middle = len(keys) // 2
        address = len(self.nodes) + 1
        self.nodes[address] = {}
        left, right = self._grow(keys[:middle]), self._grow(keys[middle + 1 :])
        self.nodes[address] |= {"key": keys[middle], "left": left, "right": right}
        return address


def side(wanted: int) -> Callable[[dict[str, Any]], int]:
    return lambda record: (wanted > record["key"]) - (wanted < record["key"])


@given(st.sets(st.integers(0, 10**6), max_size=60), st.integers(0, 10**6))
def test_red_black_trees(keys: set[int], other: int) -> None:
    tree = Nodes(list(keys))
    for key in keys | {other}:
        found = rbtree.search(tree.root, tree.nodes.__getitem__, side(key))
        assert (found["key"] if found else None) == (key if key in keys else None)


def test_a_tree_that_runs_in_a_circle() -> None:
    nodes = {1: {"key": 5, "left": 2, "right": 1}, 2: {"key": 1, "left": 1, "right": 2}}
    with pytest.raises(KvmError, match="too deep"):
        rbtree.search(1, nodes.__getitem__, side(9))


class Memory:
    """An address space by hand."""

    def __init__(self) -> None:
        self.words: dict[int, int] = {}

    def read(self, address: int, length: int) -> bytes:
        return b"".join(self.words.get(address + at, 0).to_bytes(8, "little") for at in range(0, length, 8))


@pytest.fixture(scope="module")
def kernel(open_with: Opener) -> Any:
    return open_with("swap-6.12/vmcore.kdump").kernel


class Array:
    """An XArray built into a memory by hand."""

    def __init__(self, kernel: Any) -> None:
        self.memory = Memory()
        node = kernel.prog.type("struct xa_node")
        self._shift, self._slots = node.member("shift").offset, node.member("slots").offset
        self.reader = XArrays(
            SimpleNamespace(memory=reads(self.memory.read), prog=kernel.prog, reading=kernel.reading)
        )  # type: ignore[arg-type]
        self._next = 0x10000

    def node(self, shift: int, slots: dict[int, int]) -> int:
        address = self._next
        self._next += 0x1000
        self.memory.words[address + self._shift // 8 * 8] = shift << 8 * (self._shift % 8)
        for slot, entry in slots.items():
            self.memory.words[address + self._slots + 8 * slot] = entry
        return address | 2


def test_an_array_with_entries_of_every_size(kernel: Any) -> None:
    array = Array(kernel)
    sibling = lambda slot: slot << 2 | 2  # noqa: E731
    low = array.node(0, {3: 0x1000, 4: sibling(3), 5: sibling(3), 9: 0x2000})
    head = array.node(6, {0: low, 2: 0x3001, 4: 0x4000, 5: sibling(4)})
    wanted = {
        0: (0, 0), 3: (0x1000, 3), 4: (0x1000, 3), 5: (0x1000, 3), 9: (0x2000, 9), 64: (0, 64),
        128: (0x3001, 128), 191: (0x3001, 128), 256: (0x4000, 256), 383: (0x4000, 256), 384: (0, 384),
        4096: (0, 4096), 1 << 40: (0, 1 << 40),
    }  # fmt: skip
    for index, (entry, base) in wanted.items():
        found = array.reader.load(head, index)
        assert found[0] == entry, index
        assert not entry or found[1] == base, index
    assert sorted(array.reader.entries(head, 100), key=lambda e: e[1]) == [
        (0x1000, 3), (0x2000, 9), (0x3001, 128), (0x4000, 256),
    ]  # fmt: skip
    assert array.reader.load(0x5000, 0) == (0x5000, 0)
    assert array.reader.load(0x5000, 1)[0] == 0
    assert array.reader.load(0, 7)[0] == 0
    assert (value(0x3001), value(0x3000)) == (0x1800, None)


def test_arrays_that_make_no_sense(kernel: Any) -> None:
    array = Array(kernel)
    circle = array.node(6, {})
    array.memory.words[(circle & -4) + array._slots] = circle
    level = array.node(5, {})
    twice = array.node(0, {0: 1 << 2 | 2, 1: 2 << 2 | 2})
    for head in (circle, level, twice):
        with pytest.raises(KvmError) as caught:
            array.reader.load(head, 0)
        assert caught.value.reason is Reason.CORRUPT_DATA
    with pytest.raises(KvmError):
        list(array.reader.entries(circle, 10))


@given(words=st.dictionaries(st.integers(0, 90), st.integers(0, 2**64 - 1), max_size=30), index=st.integers(0, 2**40))
@settings(max_examples=200, deadline=None)
def test_noisy_arrays(kernel: Any, words: dict[int, int], index: int) -> None:
    array = Array(kernel)
    head = array.node(6, {})
    for at, word in words.items():
        array.memory.words[(head & -4) + 8 * at] = word
    try:
        array.reader.load(head, index)
        list(array.reader.entries(head, 50))
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA


def test_extents_of_a_fragmented_file(open_with: Opener) -> None:
    """As debugfs(8) shows the swap file of the guest: eight extents of 128 blocks."""
    image = open_with("qemu/vmcore.kdump")
    area = SwapAreas(image.kernel).areas()[1]
    runs = list(Extents(image.kernel).runs(area.extents, 0, area.slots))
    assert [length for _, length in runs] == [128] * 8
    assert runs[0] == (163, 128)
    assert runs[1] == (803, 128)
    assert list(Extents(image.kernel).runs(area.extents, 127, 2)) == [(290, 1), (803, 1)]
    with pytest.raises(KvmError, match="no extent"):
        list(Extents(image.kernel).runs(area.extents, area.slots - 1, 2))


def bent_places(kernel: Any, work: Callable[[Any], object]) -> list[tuple[int, int]]:
    """What a function reads of the kernel's memory."""
    seen: list[tuple[int, int]] = []
    spy = Overlay(kernel)
    real = spy.memory.kernel

    def read(address: int, length: int) -> bytes:
        seen.append((address, length))
        data: bytes = real(address, length)
        return data

    spy.memory.kernel = read
    work(spy)
    return seen


def hammer(kernel: Any, work: Callable[[Any], object], rounds: int, seconds: float) -> None:
    places = bent_places(kernel, work)
    addresses = [address for address, _ in places]
    rng, began = random.Random(7), time.perf_counter()
    for _ in range(rounds):
        bent = Overlay(kernel)
        for _ in range(rng.randint(1, 3)):
            address, length = rng.choice(places)
            word = rng.choice([0, 1, 2, 2**64 - 1, rng.getrandbits(64), rng.getrandbits(20), rng.choice(addresses)])
            bent.put(address + 8 * rng.randrange(max(length // 8, 1)), word)
        try:
            work(bent)
        except KvmError as e:
            assert e.reason in TYPED, e
    assert time.perf_counter() - began < seconds


@pytest.mark.parametrize("name", ["swap-6.1", "swap-6.12", "swap-7.2"])
def test_bent_kernels(open_with: Opener, name: str) -> None:
    """Slots of every area, read through structures some words of which are others."""
    image = open_with(f"{name}/vmcore.kdump")
    held = fixture(f"{name}/vmcore.kdump").truth["held"]
    slots = [where for p in held for r in p["regions"] for where in r["where"][:6:5] if isinstance(where, list)]
    fd = open(fixture(f"{name}/swap.img").path, "rb")  # noqa: SIM115

    def work(kernel: Any) -> None:
        reader = SwapReader(kernel, SwapAreas(kernel), [File(fd.fileno(), "swap.img")], image._paths)
        for slot in slots[::4]:
            try:
                list(reader.chain().pages([tuple(slot)]))  # type: ignore[list-item]
            except KvmError as e:
                assert e.reason in TYPED, e

    with fd:
        hammer(image.kernel, work, 12, 60)


def test_bent_mappings(open_with: Opener) -> None:
    image = open_with("qemu/vmcore.kdump")
    pages = fixture("qemu/vmcore.kdump").truth["pages"]
    mm = image._processes.memory(pages[0]["pid"])
    addresses = [page["vaddr"] for page in pages if page["pid"] == pages[0]["pid"]]

    def work(kernel: Any) -> None:
        mappings = Mappings(kernel)
        for address in addresses[:6]:
            found = mappings.find(mm, address)
            assert found is None or found.start <= address < found.end

    assert all(Mappings(image.kernel).find(mm, address) for address in addresses)
    assert Mappings(image.kernel).find(mm, 0x1000) is None
    hammer(image.kernel, work, 200, 30)


def test_frames(kernel: Any) -> None:
    frames = Frames(kernel)
    assert frames.physical(frames.page(5)) == 5 * PAGE
    assert frames.after(frames.page(5), 3) == frames.page(8)
    for page in (0, frames.page(5) + 1, frames.page(0) - 64):
        with pytest.raises(KvmError):
            frames.physical(page)
