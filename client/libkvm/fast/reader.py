"""Many small reads: one function that has what a hit in the page cache takes at hand."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Protocol

from kvmd.fast import PAGE
from libkvm.fast.pages import Pages

_INSIDE = PAGE - 1

Read = Callable[[int, int], bytes]
Found = dict[int, tuple[int, int, int]]


class Memory(Protocol):
    """What is read."""

    def read(self, address: int, length: int) -> bytes:
        """Read kernel memory."""


def reader(kernel: Memory, current: Callable[[], Pages | None]) -> Callable[..., bytes]:
    """Make a function that reads as ``kernel.read`` does, for half the price of a hit.

    :param current: answers the page cache in use.
    """
    read = kernel.read
    found: Found = {}
    data: bytes | mmap.mmap = b""
    tags: Sequence[int] = ()
    ended: Sequence[int] = (1,)

    def slow(address: int, length: int) -> bytes:
        nonlocal found, data, tags, ended
        answer = read(address, length)
        if (pages := current()) is not None:
            found, data, tags, ended = pages.parts
        return answer

    def fast(address: int, length: int, _offset: int = 0, _physical: bool = False) -> bytes:
        try:
            at, slot, tag = found[address >> 12]
        except KeyError:
            return slow(address, length)
        inside = address & _INSIDE
        if 0 <= length <= PAGE - inside:
            at += inside
            piece = data[at : at + length]
            if tags[slot] == tag and not ended[0]:
                return piece
        return slow(address, length)

    return fast
