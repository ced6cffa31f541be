"""Reads of kernel memory, directly where that is possible: the same calls, results and errors as without."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from kvmd.fast import HALF, MOST_RANGES
from libkvm import memory
from libkvm.bounds import address_number, length_number
from libkvm.errors import KvmError
from libkvm.fast.ahead import Ahead
from libkvm.fast.joining import Direct
from libkvm.fast.link import BrokenLinkError, Link
from libkvm.fast.reader import reader
from libkvm.memory import MIB, Buffer, readable_part, space_number
from libkvm.records import RangeResult

R = TypeVar("R")

_NO_TIME = 0.001
_NO_ADDRESS = 1 << 64


class Memory(memory.Memory):
    """What can be read of an image's memory."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._direct = Direct(self._shared, self._daemon)
        self._ahead = Ahead(self._further) if self._dump and not self._shared.local else None
        if self._ahead is not None:
            self._shared.attached.add(self._ahead)

    def close(self) -> None:  # noqa: D102 - as without
        self._direct.drop()
        if self._ahead is not None:
            self._ahead.drop()
        super().close()

    def _further(self, ranges: Sequence[tuple[int, int]], physical: bool, seconds: float) -> list[RangeResult]:
        return super().readv(ranges, physical=physical, timeout=seconds)

    def _try(self, use: Callable[[Link, float], R], until: float) -> R | None:
        """Do something over the link, until then; None: ask the daemon, which has what time is left."""
        if (link := self._direct.link(self._id)) is None:
            return None
        try:
            return use(link, max(until - time.monotonic(), _NO_TIME))
        except (BrokenLinkError, TimeoutError):
            return None

    def _until(self, length: int, timeout: float | None) -> float:
        more = length / MIB if length > MIB else 0.0
        return time.monotonic() + (self._session.timeout + more if timeout is None else timeout)

    def read(  # noqa: D102 - as without
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> bytes:
        if not physical and pid is None:
            try:
                data = self._direct.cached(address, length)
            except TypeError:  # what can be an index, but isn't an int
                data = None
            if data is not None:
                return data
        if length > MIB:
            return b"".join(self.stream(address, length, physical=physical, pid=pid, timeout=timeout))
        space, process = space_number(physical, pid)
        where, size, until = address_number(address), length_number(length), self._until(length, timeout)
        data = self._try(lambda link, left: link.read(where, size, space, process, left), until)
        if data is None and self._ahead is not None and pid is None:
            data = self._ahead.read(physical, where, size, _left(until))
        if data is not None:
            return data
        return super().read(address, length, physical=physical, pid=pid, timeout=_left(until))

    def reader(self) -> Callable[..., bytes]:
        """Make a function of an address and a length, for very many small reads of kernel memory.

        It does what :meth:`read` does, and takes half as long for what is in the page cache.

        Further arguments are ignored, so that it can be drgn's memory hook (``Program.add_memory_segment``).
        """
        return reader(self, lambda: link.pages if (link := self._direct.link(self._id)) is not None else None)

    def readinto(  # noqa: D102 - as without
        self,
        address: int,
        buffer: Buffer,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> int:
        with memoryview(buffer) as whole, whole.cast("B") as view:
            space, process = space_number(physical, pid)
            where, length, until, done = address_number(address), view.nbytes, self._until(view.nbytes, timeout), 0
            for at, size in _pieces(where, length):
                with view[done : done + size] as into:
                    if not self._try(lambda link, left: link.readinto(at, into, space, process, left), until):  # noqa: B023
                        break
                done += size
            if done < length or not length:
                with view[done:] as rest, _after(done):
                    super().readinto(where + done, rest, physical=physical, pid=pid, timeout=_left(until))
            return length

    def stream(  # noqa: D102 - as without
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> Generator[bytes]:
        space, process = space_number(physical, pid)
        where, until, done = address_number(address), self._until(length_number(length), timeout), 0
        for at, size in _pieces(where, length):
            data = self._try(lambda link, left: link.read(at, size, space, process, left), until)  # noqa: B023
            if data is None:
                break
            yield data
            done += size
        if done < length or not length:
            with _after(done):
                rest = length - done
                yield from super().stream(where + done, rest, physical=physical, pid=pid, timeout=_left(until))

    def views(  # noqa: D102 - as without
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> Generator[memoryview]:
        space, process = space_number(physical, pid)
        where, until, done = address_number(address), self._until(length_number(length), timeout), 0
        for at, size in _pieces(where, length):
            loan = self._try(lambda link, left: link.lend(at, size, space, process, left), until)  # noqa: B023
            if loan is None:
                break
            with loan as view:
                yield view
            done += size
        if done < length or not length:
            with _after(done):
                rest = length - done
                yield from super().views(where + done, rest, physical=physical, pid=pid, timeout=_left(until))

    def readv(  # noqa: D102 - as without
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> list[RangeResult]:
        wanted = [(address_number(address), length_number(length, 2**32)) for address, length in ranges]
        space, process = space_number(physical, pid)
        link = self._direct.link(self._id)
        pages = None if link is None or physical or pid is not None else link.pages
        found: list[bytes | None] = pages.read_each(wanted) if pages is not None else [None] * len(wanted)
        for batch in _batches([index for index, data in enumerate(found) if data is None], wanted):
            asked = [wanted[index] for index in batch]
            answers = self._try(lambda link, left: link.readv(asked, space, process, left), self._until(0, timeout))  # noqa: B023
            if answers is None:
                break
            for index, data in zip(batch, answers, strict=True):
                found[index] = data
        rest = [index for index, data in enumerate(found) if data is None]
        results = list(map(_result, found))
        if rest:
            more = super().readv([wanted[index] for index in rest], physical=physical, pid=pid, timeout=timeout)
            for index, result in zip(rest, more, strict=True):
                results[index] = result
        return results


def _left(until: float) -> float:
    return max(until - time.monotonic(), _NO_TIME)


def _result(data: bytes | None) -> RangeResult:
    return RangeResult(data or b"", None)


def _pieces(address: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range into reads; none if it runs over the end of the address space, which the daemon may tell."""
    if address + length <= _NO_ADDRESS:
        for at in range(0, length, HALF):
            yield address + at, min(HALF, length - at)


def _batches(indexes: Iterable[int], ranges: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Put indexes of ranges together as one request takes them; those that are too long for any are left out."""
    batch: list[int] = []
    size = 0
    for index in indexes:
        _, length = ranges[index]
        if length > HALF:
            continue
        if batch and (len(batch) == MOST_RANGES or size + length > HALF):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += length
    if batch:
        yield batch


@contextlib.contextmanager
def _after(done: int) -> Iterator[None]:
    """Count what has been read already in what an error says is readable."""
    try:
        yield
    except KvmError as fault:
        raise readable_part(fault, done + int(fault.metadata.get("readable", "0"))) from None
