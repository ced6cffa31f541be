"""The values of kallsyms' symbols, beside names that were found: every layout since Linux 4.6, tried in turn. Pure.

Source: Linux scripts/kallsyms.c and kernel/kallsyms.c. Before 6.4 they lie before the number of symbols, since then
after the token index. They are 64-bit addresses (before 4.6, and without CONFIG_KALLSYMS_BASE_RELATIVE until 6.11), or
32-bit offsets and ``kallsyms_relative_base``, which is the lowest address; with CONFIG_KALLSYMS_ABSOLUTE_PERCPU (until
6.14) offsets below zero count down from the base less one, the others are values themselves. Since 7.0 there is no
base: each is relative to its own place.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from kvmd.images.linux.scan.names import Names

_KERNEL = 0xFFFF << 48  # the least that a kernel's address is
_ALL = (1 << 64) - 1


class Words(NamedTuple):
    """Where the words that tell values are in a window, and the base that they count from, if there is one."""

    at: int
    base: int | None


def values(window: bytes, address: int, names: Names) -> Iterator[tuple[list[int], Words | None]]:
    """Give what can be the values of symbols, in the order of their names; and where, unless they are addresses.

    :param address: of the window; what is relative to its own place counts from there.
    """
    told = False
    for found, words in _told(window, names):
        if _plausible(found):
            told = True
            yield found, words
    offsets = _array("i", window, names.end, len(names.names))
    if offsets and not told:
        places = range(address + names.end, address + names.end + 4 * len(offsets), 4)
        own = [place + offset & _ALL for place, offset in zip(places, offsets, strict=True)]
        if own == sorted(own) and own[0] != own[-1]:
            yield own, Words(names.end, None)


def _told(window: bytes, names: Names) -> Iterator[tuple[list[int], Words | None]]:
    """What the values are in each layout that tells addresses, or a base."""
    count = len(names.names)
    before = names.count_at & ~7
    pairs = ((before - 8 - _aligned(4 * count), before - 8), (names.end, names.end + _aligned(4 * count)))
    for offsets_at, base_at in pairs:
        offsets, base = _array("i", window, offsets_at, count), _array("Q", window, base_at, 1)
        if offsets and base:
            yield from ((found, Words(offsets_at, base_at)) for found in _relative(offsets, base[0]))
    for at in (before - 8 * count, names.end):
        addresses = _array("Q", window, at, count)
        if addresses:
            yield list(addresses), None


def _aligned(size: int) -> int:
    return size + 7 & ~7


def _array(code: str, window: bytes, at: int, count: int) -> array[int]:
    """Numbers at an offset; none if the window does not hold all of them."""
    found = array(code)
    data = window[at : at + count * found.itemsize] if at >= 0 else b""
    if len(data) == count * found.itemsize:
        found.frombytes(data)
    return found


def _relative(offsets: array[int], base: int) -> Iterator[list[int]]:
    """Both ways to count from a base, which is the lowest address."""
    found = [offset if offset >= 0 else base - 1 - offset for offset in offsets]
    if base in found:
        yield found
    if offsets[0] == 0:
        yield [base + (offset & 0xFFFFFFFF) for offset in offsets]


def _plausible(found: list[int]) -> bool:
    """Whether values ascend, and most are addresses of one kernel."""
    if found[-1] > _ALL or found != sorted(found):
        return False
    first = bisect_left(found, _KERNEL)
    return 2 * first < len(found) and found[-1] - found[first] < 1 << 32
