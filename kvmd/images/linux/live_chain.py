"""Walks of a kernel list that changes while it is walked.

The kernel's lists are doubly linked (Linux include/linux/list.h, rculist.h): an entry that is linked has a neighbour
that points back at it, one that was taken out keeps its ``next`` and has lost its ``prev``. An entry counts only if,
when it was read, its ``prev`` was the entry it was reached from, and it is the same thing as before when it is read
again. Where that fails the walk goes back to the last entry that is still linked and on from there. So whatever was in
the list all the time is found once; what came or went meanwhile may be found or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error

MAX_SECONDS = 20.0
"""The longest one walk may take: less than a worker may be silent."""


class Link(NamedTuple):
    """An entry as it was read.

    :ivar following: the address of the next entry's list_head.
    :ivar before: the address of the previous one's.
    :ivar identity: what stays the same as long as this is the same thing.
    """

    following: int
    before: int
    identity: Hashable = None


def changed(what: str) -> KvmError:
    """The error for a list that can't be caught standing still."""
    return error(Reason.CHANGED, f"{what} changed faster than it could be read; try again", what=what)


class Chain:
    """One walk.

    :param head: the address of the list's head.
    :param read: reads an entry, or the head; raises KvmError.
    :param limit: the most entries there can be.
    :param what: the list's name, for messages.
    """

    def __init__(self, head: int, read: Callable[[int], Link], limit: int, what: str) -> None:
        self._read = read
        self._limit = limit
        self._what = what
        self._deadline = time.monotonic() + MAX_SECONDS
        self._path: list[tuple[int, Link]] = [(head, read(head))]

    def walk(self) -> list[int]:
        """The addresses of the list's entries, in its order.

        :raises KvmError: CHANGED after too many steps back, or too long; what ``read`` raises for the head.
        """
        path, head = self._path, self._path[0][0]
        steps = 0
        while True:
            steps += 1
            if steps > 4 * self._limit or time.monotonic() > self._deadline:
                raise changed(self._what)
            at, link = path[-1]
            try:
                following = self._read(link.following)
            except KvmError:  # freed and gone: only what is no longer linked leads there
                following = None
            if following is None or following.before != at:
                self._step_back()
            elif link.following == head:
                # One that was taken out and put in again is where it was met last.
                return list(dict.fromkeys(address for address, _ in reversed(path[1:])))[::-1]
            else:
                path.append((link.following, following))

    def _step_back(self) -> None:
        """Read the last entry again; leave those that are no longer linked."""
        path = self._path
        while len(path) > 1:
            (before, _), (at, link) = path[-2:]
            try:
                again = self._read(at)
                linked = again.before == before and again.identity == link.identity
                linked = linked and self._read(before).following == at
            except KvmError:
                linked = False
            if linked:
                path[-1] = (at, again)
                return
            path.pop()
        head = path[0][0]
        path[0] = (head, self._read(head))
