"""Pages that were read last."""

from __future__ import annotations

import random

import pytest

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux import recent
from kvmd.images.linux.recent import RecentPages

PAGE = 4096
MEMORY = random.Random(5).randbytes(64 * PAGE)


class Dump:
    """64 pages, of which every seventh isn't there, and the last can't be read now."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def into(self, address: int, into: memoryview) -> bool:
        self.asked.append(address)
        if address == 63 * PAGE:
            raise error(Reason.SOURCE_IO, "the disk")
        into[:] = MEMORY[address : address + len(into)]
        return address // PAGE % 7 != 6


@pytest.fixture
def dump() -> Dump:
    return Dump()


def test_a_page_is_read_once(dump: Dump) -> None:
    pages = RecentPages(dump.into, PAGE)
    for at, length in ((3 * PAGE, 8), (3 * PAGE + 17, 100), (4 * PAGE - 1, 1), (3 * PAGE, PAGE)):
        assert pages.read(at, length) == MEMORY[at : at + length]
    assert dump.asked == [3 * PAGE]


def test_what_is_not_there_is_asked_for_again(dump: Dump) -> None:
    pages = RecentPages(dump.into, PAGE)
    assert pages.read(6 * PAGE, 8) is None
    assert pages.read(6 * PAGE + 8, 8) is None
    for _ in range(2):
        with pytest.raises(KvmError, match="the disk"):
            pages.read(63 * PAGE, 8)
    assert dump.asked == [6 * PAGE] * 2 + [63 * PAGE] * 2


def test_no_more_is_kept_than_may_be(dump: Dump, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that was read first goes first."""
    monkeypatch.setattr(recent, "_KEPT", 3 * PAGE)
    pages = RecentPages(dump.into, PAGE)
    for number in (0, 1, 2, 3, 1, 2, 3, 0):
        assert pages.read(number * PAGE + 5, 9) == MEMORY[number * PAGE + 5 :][:9]
    assert dump.asked == [number * PAGE for number in (0, 1, 2, 3, 0)]


def test_one_page_is_kept_however_long(monkeypatch: pytest.MonkeyPatch, dump: Dump) -> None:
    monkeypatch.setattr(recent, "_KEPT", 1024)
    pages = RecentPages(dump.into, PAGE)
    assert pages.read(0, 8) == pages.read(0, 8) == MEMORY[:8]
    assert dump.asked == [0]
