"""Knowing that a client is gone, even while nothing is read from it.

A pump that waits for a slow target doesn't read its source, and asyncio drops a descriptor that it neither
reads nor writes. So every client's socket, and the pidfd of every client's process, is also in one epoll
set of the front's own, which the loop watches as one descriptor. epoll(7) always reports EPOLLHUP and EPOLLERR.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from collections.abc import Callable

_BATCH = 256


class HangupWatch:
    """Runs a callback once when a socket's other end is closed, or when a pidfd's process exits."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._ready)

    def add_socket(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch a connected Unix socket for the other side's close(2)."""
        self._add(fd, 0, callback)

    def add_stream(self, fd: int, callback: Callable[[], None]) -> None:
        """Watch a connected TCP socket for the other side's close(2), which is no hang-up (tcp(7)), or shutdown(2)."""
        self._add(fd, select.EPOLLRDHUP, callback)

    def add_process(self, pidfd: int, callback: Callable[[], None]) -> None:
        """Watch a process for its end."""
        self._add(pidfd, select.EPOLLIN, callback)

    def _add(self, fd: int, events: int, callback: Callable[[], None]) -> None:
        self._epoll.register(fd, events | select.EPOLLONESHOT)
        self._callbacks[fd] = callback

    def remove(self, fd: int) -> None:
        """Stop watching, before the descriptor is closed; nothing happens if it isn't watched."""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def close(self) -> None:
        """Stop watching anything; a second call does nothing."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._callbacks.clear()

    def _ready(self) -> None:
        for fd, _events in self._epoll.poll(0, _BATCH):
            # An earlier callback of this batch may have removed this one.
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
