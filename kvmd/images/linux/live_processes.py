"""Processes of the running kernel: each record is read until nothing it rests on changed meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.live_chain import changed
from kvmd.images.linux.live_tasks import LiveTasks
from kvmd.images.linux.processes import FILTERS, Processes
from kvmd.images.linux.strings import StringReader
from kvmd.v1 import process_pb2

T = TypeVar("T")

_TRIES = 8
_WHO = ("pid", "start")
_RESTS_ON = (*_WHO, "tgid", "mm", "parent", "signal", "sighand", "cred", "thread_pid")


class LiveProcesses(Processes):
    """The process list of the running kernel.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        self.tasks: LiveTasks = LiveTasks(kernel)

    def pids(self) -> list[int]:
        """The pids of all processes, ascending."""
        return self.tasks.pids()

    def select(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """List what the request asks for by ascending pid; what ended since the walk is left out.

        :raises KvmError: BAD_ARGUMENT; CHANGED, after all that could be listed.
        """
        predicate = FILTERS.get(request.filter)
        if predicate is None:
            raise error(Reason.BAD_ARGUMENT, f"{request.filter} is no process filter")
        failure: KvmError | None = None
        last = 0
        for address in list(self.tasks.walk(request.threads)):
            try:
                process = self.steady(address)
            except KvmError as e:
                failure = failure or e
                continue
            # A pid that is not above the last one is a new task's, where an older one's memory was.
            if process is not None and process.pid > last:
                last = process.pid
                if predicate(process, request.argument):
                    yield process
        if failure is not None:
            raise failure

    def steady(self, address: int) -> process_pb2.Process | None:
        """Describe the task at an address; None if it has ended.

        :raises KvmError: CHANGED; a fault that comes again at each try.
        """
        first = self._task(address)
        failure: KvmError | None = None
        for _ in range(_TRIES):
            before, record = self._task(address), None
            try:
                record = self.record(address)
            except KvmError as e:
                failure = e
            after = self._task(address)
            if not after["thread_pid"] or _differ(first, after, _WHO):
                return None
            if record is not None and not _differ(before, after, _RESTS_ON):
                return record
        raise failure or changed(f"process {first['pid']}")


def _differ(one: dict[str, Any], other: dict[str, Any], names: tuple[str, ...]) -> bool:
    return any(one[name] != other[name] for name in names)


class LiveStrings(StringReader):
    """Arguments and environments of running processes.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def read(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """Read as the base class does, while the process keeps its memory.

        :raises KvmError: as the base class; CHANGED if it runs one program after the other.
        """
        read = super().read
        return in_one_memory(self._processes, pid, lambda: read(pid, kind, limit))

    def arguments(self, process: process_pb2.Process) -> process_pb2.Strings:
        """Read as the base class does; the process may have ended since it was listed, and is looked for."""
        return self.read(process.pid, process_pb2.STRINGS_KIND_ARGUMENTS, 0)


def in_one_memory(processes: Processes, pid: int, read: Callable[[], T]) -> T:
    """What a function reads of a process's memory, which was the same process's before and after.

    :raises KvmError: CHANGED; NO_SUCH_PROCESS, NO_USER_MEMORY once it has ended; what the function raises.
    """
    for _ in range(_TRIES):
        memory = processes.memory(pid)
        try:
            found = read()
        except KvmError:
            if processes.memory(pid) == memory:
                raise
            continue
        if processes.memory(pid) == memory:
            return found
    raise changed(f"process {pid}'s memory")
