"""How a line of a table of objects says where to look for one, and what it must be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmd.images.linux.objects.checks import Check
from kvmd.images.linux.objects.probe import Probe


class Code(NamedTuple):
    """Look at what all of these functions refer to, as far as the kernel has them; and none of the others.

    Of functions joined by ``|`` one is enough: for objects that nothing else looks like.

    :ivar also: offsets from the object that they refer to, too.
    """

    functions: tuple[str, ...]
    without: tuple[str, ...] = ()
    also: tuple[int, ...] = ()


class Content(NamedTuple):
    """Look for bytes in the kernel's image: gives those, and how far after the object's beginning they stand."""

    bytes_of: Callable[[Probe], Iterator[tuple[bytes, int]]]


class Derived(NamedTuple):
    """Look where another object says."""

    address: Callable[[Probe], int]


class Object(NamedTuple):
    """An object of the kernel.

    :ivar size: in bytes, at least: what lies inside one that passed is a part of it.
    :ivar untold: where to look if the origin tells nothing.
    """

    origin: Code | Content | Derived
    check: Check
    size: int = 8
    untold: Code | None = None


def code(*functions: str, without: tuple[str, ...] = ()) -> Code:
    """Look at what some functions refer to, and others don't."""
    return Code(functions, without)


def pointer(symbol: str, tag: str = "", member: str = "") -> Content:
    """Look for a pointer to what a symbol means, in a member of a struct."""

    def bytes_of(probe: Probe) -> Iterator[tuple[bytes, int]]:
        offset = probe.offset(tag, member) if tag else 0
        yield probe.address(symbol).to_bytes(8, "little"), offset

    return Content(bytes_of)
