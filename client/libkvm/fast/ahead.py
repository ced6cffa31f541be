"""Memory of a dump that is read before it is asked for, where each call goes to another host and back.

Who reads one piece after the other gets the second from what came with the first: a call brings 64 KiB, and each
further one twice as much as the last, up to 4 MiB. Nothing is left open between calls, so that a reader who pauses
holds nothing up, and a failure says nothing: what it would have brought is asked for when it is wanted.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

from libkvm.errors import KvmError
from libkvm.memory import MIB
from libkvm.records import RangeResult

FIRST = 64 << 10
MOST = 4 * MIB
_RUN = 2  # reads that followed another, before more is read than was asked for
_END = 1 << 64

Place = tuple[bool, int]
"""Whether an address is physical, and the address."""
ReadV = Callable[[Sequence[tuple[int, int]], bool, float], list[RangeResult]]


class Ahead:
    """What was read ahead of one image.

    :param readv: reads ranges, of physical memory or the kernel's, within so many seconds.
    """

    def __init__(self, readv: ReadV) -> None:
        self._readv = readv
        self._turn = threading.Lock()
        self._owner = os.getpid()  # a child of fork(2) has no connection
        self._forget((False, -1))

    def _forget(self, following: Place) -> None:
        self._following = following
        self._at: Place = following
        self._data = b""
        self._run, self._window = 0, FIRST

    def drop(self) -> None:
        """Give up what there is: the image or its client is closed."""
        self._forget((False, -1))

    def read(self, physical: bool, address: int, length: int, seconds: float) -> bytes | None:
        """Read up to 1 MiB; None: ask for it.

        Of several threads that read one image at once only one is served: they don't read one after the other.
        """
        if not 0 < length <= MIB or self._owner != os.getpid() or not self._turn.acquire(blocking=False):
            return None
        try:
            return self._next(physical, address, length, seconds)
        finally:
            self._turn.release()

    def _next(self, physical: bool, address: int, length: int, seconds: float) -> bytes | None:
        end = (physical, address + length)
        if self._following != (physical, address):
            self._forget(end)
            return None
        self._following = end
        self._run += 1
        if self._run < _RUN:
            return None
        inside = address - self._at[1] if self._data and self._at[0] == physical else 0
        if inside + length > len(self._data):
            self._fetch((physical, address), self._data[inside:], length, seconds)
            inside = 0
        return self._data[inside : inside + length] if inside + length <= len(self._data) else None

    def _fetch(self, place: Place, have: bytes, length: int, seconds: float) -> None:
        """Read on where what there is ends."""
        physical, address = place
        start = address + len(have)
        end = min(start + max(self._window, length), _END)
        ranges = [(at, min(MIB, end - at)) for at in range(start, end, MIB)]
        parts = [have]
        try:
            for result in self._readv(ranges, physical, seconds) if ranges else ():
                parts.append(result.data)
                if result.error is not None:
                    break
        except KvmError:
            pass  # who asked asks again, and is told
        self._at, self._data = place, b"".join(parts)
        self._window = min(2 * self._window, MOST)
