"""Reads of structures that the running kernel changes meanwhile: again until they make sense, or CHANGED."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.live_chain import changed

_TRIES = 4
# What a structure that is changed while it is read looks like.
_TORN = (Reason.CORRUPT_DATA, Reason.NOT_MAPPED, Reason.NOT_PRESENT, Reason.BEYOND_DUMP)

T = TypeVar("T")
Record = TypeVar("Record", bound=Message)


def steady(what: str, read: Callable[[], T]) -> T:
    """What a function reads, tried again where the kernel changed it meanwhile.

    :raises KvmError: CHANGED; what the function raises for other reasons.
    """
    failure: KvmError | None = None
    for _ in range(_TRIES):
        try:
            return read()
        except KvmError as e:
            if e.reason not in _TORN:
                raise
            failure = e
    raise changed(what) from failure


def alike(read: Callable[[], list[Record]], names: tuple[str, ...]) -> list[Record]:
    """The records of a reading that the one before had, too: what was freed meanwhile is not taken for its heir.

    :param names: the fields that tell records apart.
    :raises KvmError: as :func:`steady`.
    """

    def key(record: Record) -> Hashable:
        return tuple(getattr(record, name) for name in names)

    before = {key(record) for record in steady("the open files", read)}
    return [record for record in steady("the open files", read) if key(record) in before]


def each_process(pids: Iterable[int], read: Callable[[int], list[Record]]) -> Iterator[Record]:
    """The records of every process, in the order of their pids; one that has ended meanwhile has none.

    :raises KvmError: the first failure of a process, after all that could be listed.
    """
    failure: KvmError | None = None
    for pid in pids:
        try:
            yield from read(pid)
        except KvmError as e:
            if e.reason is not Reason.NO_SUCH_PROCESS:
                failure = failure or e
    if failure is not None:
        raise failure
