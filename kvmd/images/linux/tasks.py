"""Walks of the kernel's task lists, bounded and proof against cycles.

Source: Linux include/linux/sched.h and sched/signal.h (task_struct.tasks since 2.6, thread_node since 3.14).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel

MAX_TASKS = 1 << 22  # PID_MAX_LIMIT of 64-bit kernels


class _Known:
    """A walk, as far as it was needed.

    :param walk: gives (pid, address); of a pid that comes twice the first one counts.
    """

    def __init__(self, walk: Iterator[tuple[int, int]]) -> None:
        self._walk = walk
        self._places: dict[int, int] = {}
        self._failure: KvmError | None = None

    def find(self, pid: int) -> int | None:
        """Find a task.

        :raises KvmError: what ended the walk, if the task doesn't come before.
        """
        if pid in self._places:
            return self._places[pid]
        try:
            for found, address in self._walk:
                self._places.setdefault(found, address)
                if found == pid:
                    return address
        except KvmError as failure:
            self._failure = failure
        if (known := self._failure) is not None:  # an error of its own for each caller, who may add to it
            raise type(known)(known.reason, known.message, dict(known.metadata)) from known.__cause__
        return None


class Tasks:
    """The tasks of one kernel, by the address of their task_struct.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        kernel.need_types()
        self._kernel = kernel
        self._read = kernel.memory.kernel
        wanted = {
            "next": ("tasks.next",),
            "prev": ("tasks.prev",),
            "pid": ("pid",),
            "tgid": ("tgid",),
            "signal": ("signal",),
        }
        self._links = Fields(kernel.prog, self._read, "struct task_struct", wanted | {"node": ("thread_node.next",)})
        self._threads = Fields(kernel.prog, self._read, "struct signal_struct", {"head": ("thread_head.next",)})

    @cached_property
    def init(self) -> int:
        """The address of init_task.

        :raises KvmError: NO_SYMBOLS.
        """
        return self._kernel.address("init_task")

    def _leaders(self) -> Iterator[tuple[int, dict[str, int]]]:
        """Walk the list of thread group leaders, without the idle task, in the order of their creation.

        Where a link can't be read, what can be reached from the list's other end follows before the fault is raised.
        """
        seen: set[int] = set()
        try:
            yield from self._chain("next", seen)
        except KvmError as e:
            with suppress(KvmError):
                yield from self._chain("prev", seen)
            raise e from e.__cause__

    def _chain(self, link: str, seen: set[int]) -> Iterator[tuple[int, dict[str, int]]]:
        """Follow one direction until the list closes; ``seen`` takes the addresses that were reached."""
        offset, address = self._links.offsets["next"], self.init
        while len(seen) < MAX_TASKS:
            links = self._read_links(address)
            if address != self.init:
                yield address, links
            address = links[link] - offset & (1 << 64) - 1
            if address == self.init:
                return
            if address in seen:
                raise error(Reason.CORRUPT_DATA, "the kernel's list of tasks runs in a circle", address=address)
            seen.add(address)
        raise error(Reason.CORRUPT_DATA, "the kernel's list of tasks does not end")

    def _read_links(self, address: int) -> dict[str, int]:
        return self._links(address)  # type: ignore[return-value] # all members are integers that exist

    def _group(self, leader: int, links: dict[str, int]) -> Iterator[tuple[int, int]]:
        """Walk a group's threads: (pid, address)."""
        offset = self._links.offsets["node"]
        head = links["signal"] + self._threads.offsets["head"]
        node, seen = self._threads(links["signal"])["head"], set[int]()
        while node != head:
            if not isinstance(node, int) or node in seen or len(seen) > MAX_TASKS:
                raise error(Reason.CORRUPT_DATA, "a process's list of threads runs in a circle", address=leader)
            seen.add(node)
            address = node - offset & (1 << 64) - 1
            thread = self._read_links(address)
            yield thread["pid"], address
            node = thread["node"]

    def walk(self, threads: bool = False) -> Iterator[int]:
        """List the addresses of all leaders or threads by ascending pid; memory is some 50 bytes a task.

        What was found before a fault is listed before the fault is raised.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds a task.
        """
        found: list[int] = []  # pid and address as one number: small, and sorts as it should
        failure: KvmError | None = None
        try:
            for address, links in self._leaders():
                if not threads:
                    found.append(links["pid"] << 64 | address)
                    continue
                try:
                    found.extend(pid << 64 | thread for pid, thread in self._group(address, links))
                except KvmError as e:
                    failure = failure or e
        except KvmError as e:
            failure = failure or e
        found.sort()
        for task in found:
            yield task & (1 << 64) - 1
        if failure is not None:
            raise failure

    def find(self, pid: int) -> int:
        """Find a task by its pid, thread or leader, in the initial pid namespace.

        :raises KvmError: NO_SUCH_PROCESS, or what :meth:`walk` raises.
        """
        known = _Known(self._everything()) if self._kernel.dump.live else self._known
        if pid > 0 and (found := known.find(pid)) is not None:
            return found
        raise error(Reason.NO_SUCH_PROCESS, f"no process has the id {pid}", pid=pid)

    @cached_property
    def _known(self) -> _Known:
        """What was found of a dump, which doesn't change: who reads of many processes makes one walk, not many."""
        return _Known(self._everything())

    def _everything(self) -> Iterator[tuple[int, int]]:
        """Walk leaders, then threads: (pid, address)."""
        for address, links in self._leaders():
            yield links["pid"], address
        for address, links in self._leaders():
            yield from self._group(address, links)
