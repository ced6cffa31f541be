"""Looks for bytes in much memory, a mebibyte at a time.

Nothing is done page by page but where a page can't be read: 1 GiB takes as long as reading it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from kvmd.errors import Reason, error
from kvmd.images.base import CHUNK

_STEP = 2 << 20  # by which kernels are mapped, but for the ends of their sections
_IMAGE, _GAP = 512 << 20, 16 << 20  # the most that an image has, and where nothing is mapped for so long it has ended
PLACES = 1 << 16
"""Where a string may stand, at most; it is looked at what is there."""
T = TypeVar("T")
Read = Callable[[int, int], bytes | None]
"""Reads exactly, at most a chunk; None if not all of it can be read."""


def at_most(number: int, found: Iterable[T], what: str) -> Iterator[T]:
    """Give what was found; of more than a number nothing is chosen, for what counts might be left out.

    :raises KvmError: AMBIGUOUS.
    """
    for count, one in enumerate(found):
        if count == number:
            raise error(Reason.AMBIGUOUS, f"the image holds more than {number} {what}; name a vmlinux as execfile")
        yield one


def search(
    read: Read, runs: Iterable[range], wanted: Sequence[bytes], page: int, passed: Callable[[int], None] | None = None
) -> Iterator[tuple[bytes, int]]:
    """Give which of some strings stands where.

    :param runs: ranges of addresses, in pages; what can't be read is passed over.
    :param wanted: strings of less than a page; those that lie across a gap are not found.
    :param passed: is told how many bytes have been looked at.
    """
    done = 0
    overlap = max(map(len, wanted)) - 1
    for run in runs:
        held = b""
        for start in range(run.start, run.stop, CHUNK):
            for at, data in readable(read, start, min(CHUNK, run.stop - start), page):
                held = held if at == start else b""
                yield from _hits(held + data, at - len(held), len(held), wanted)
                held = data[-overlap:] if at + len(data) == start + CHUNK else b""
            done += min(CHUNK, run.stop - start)
            if passed is not None:
                passed(done)


def _hits(text: bytes, base: int, held: int, wanted: Sequence[bytes]) -> Iterator[tuple[bytes, int]]:
    for string in wanted:
        for place in _sparse(text, string) if not any(string[1::2]) else _dense(text, string):
            if place + len(string) > held:  # what was held was looked at before
                yield string, base + place


def _dense(text: bytes, string: bytes) -> Iterator[int]:
    place = text.find(string)
    while place >= 0:
        yield place
        place = text.find(string, place + 1)


def _sparse(text: bytes, string: bytes) -> Iterator[int]:
    """The same for a string with a zero after each byte: in memory, which is full of zeroes, find() is slow at it."""
    for first in (0, 1):
        for place in _dense(text[first::2], string[::2]):
            if text.startswith(string, first + 2 * place):
                yield first + 2 * place


def readable(read: Read, start: int, length: int, page: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a range that can be read."""
    whole = read(start, length)
    if whole is not None:
        yield start, whole
        return
    held: list[bytes] = []
    at = start
    while at < start + length:
        size = min(page - at % page, start + length - at)
        data = read(at, size)
        if data is not None:
            held.append(data)
        elif held:
            yield at - sum(map(len, held)), b"".join(held)
            held = []
        at += size
    if held:
        yield at - sum(map(len, held)), b"".join(held)


def window(read: Read, start: int, end: int, page: int) -> bytes:
    """A range as one string, with zeroes for what can't be read."""
    found = bytearray(max(end - start, 0))
    for at in range(start, end, CHUNK):
        for place, data in readable(read, at, min(CHUNK, end - at), page):
            found[place - start : place - start + len(data)] = data
    return bytes(found)


def mapped(read: Read, start: int) -> list[range]:
    """The ranges of a kernel's image, which begins at an address, that are mapped; in steps of 2 MiB."""
    runs: list[range] = []
    at = start & -_STEP
    while at < min(start + _IMAGE, 1 << 64) and at - (runs[-1].stop if runs else start) < _GAP:
        if any(read(place, 1) for place in range(at, at + _STEP, _STEP // 4)):
            joined = bool(runs) and runs[-1].stop == at
            runs[-1:] = [range(runs[-1].start, at + _STEP)] if joined else [*runs[-1:], range(at, at + _STEP)]
        at += _STEP
    return runs
