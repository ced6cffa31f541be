"""The task lists of the running kernel, walked as :mod:`~kvmd.images.linux.live_chain` says.

Source: Linux kernel/fork.c, kernel/exit.c and fs/exec.c: tasks join the end of ``init_task.tasks`` and of
``signal->thread_head``; a thread that calls exec takes its leader's place.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmd.errors import KvmError
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.live_chain import Chain, Link
from kvmd.images.linux.tasks import MAX_TASKS, Tasks

_MASK = (1 << 64) - 1


class LiveTasks(Tasks):
    """The tasks of the running kernel."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel)
        wanted = {
            "next": ("tasks.next",),
            "prev": ("tasks.prev",),
            "pid": ("pid",),
            "tgid": ("tgid",),
            "signal": ("signal",),
            "start": ("start_boottime", "real_start_time"),
            "node": ("thread_node.next",),
            "node_prev": ("thread_node.prev",),
        }
        self._links = Fields(kernel.prog, self._read, "struct task_struct", wanted)
        head = {"head": ("thread_head.next",), "head_prev": ("thread_head.prev",)}
        self._threads = Fields(kernel.prog, self._read, "struct signal_struct", head)
        self._places: dict[int, int] = {}

    def _leaders(self) -> Iterator[tuple[int, dict[str, int]]]:
        offset = self._links.offsets["next"]
        records: dict[int, dict[str, int]] = {}

        def read(node: int) -> Link:
            task = records[node] = self._read_links(node - offset & _MASK)
            return Link(task["next"], task["prev"], (task["pid"], task["start"]))

        nodes = Chain(self.init + offset, read, MAX_TASKS, "the list of processes").walk()
        for node in nodes:
            yield node - offset & _MASK, records[node]

    def _group(self, leader: int, links: dict[str, int]) -> Iterator[tuple[int, int]]:
        offset, head = self._links.offsets["node"], links["signal"] + self._threads.offsets["head"]
        pids: dict[int, int] = {}

        def read(node: int) -> Link:
            if node == head:
                ends = self._threads(links["signal"])
                return Link(ends["head"], ends["head_prev"])  # type: ignore[arg-type] # integers that exist
            task = self._read_links(node - offset & _MASK)
            pids[node] = task["pid"]
            return Link(task["node"], task["node_prev"], (task["pid"], task["start"], task["signal"]))

        try:
            nodes = Chain(head, read, MAX_TASKS, f"the list of process {links['pid']}'s threads").walk()
        except KvmError:
            if self._is(leader, links):
                raise
            return  # it has ended, and its list with it
        if self._is(leader, links):
            for node in nodes:
                yield pids[node], node - offset & _MASK

    def _is(self, address: int, links: dict[str, int]) -> bool:
        """Whether a task is still what it was."""
        now = self._read_links(address)
        return all(now[name] == links[name] for name in ("pid", "start", "signal"))

    def walk(self, threads: bool = False) -> Iterator[int]:
        """List addresses as the base class does; each is remembered as the place where its pid was last."""
        places = {}
        for address in super().walk(threads):
            places[self._read_links(address)["pid"]] = address
            yield address
        self._places = places

    def pids(self) -> list[int]:
        """The pids of all processes, ascending."""
        list(self.walk())
        return list(self._places)

    def find(self, pid: int) -> int:
        """Find a task as the base class does; where it was last is looked at first."""
        if (address := self._places.get(pid)) is not None and self._linked(address, pid):
            return address
        return super().find(pid)

    def _linked(self, address: int, pid: int) -> bool:
        """Whether the leader of this pid is at an address, with neighbours that point at it."""
        offset = self._links.offsets["next"]
        try:
            task = self._read_links(address)
            before = self._read_links(task["prev"] - offset & _MASK)
            after = self._read_links(task["next"] - offset & _MASK)
        except KvmError:  # its memory is something else's by now
            return False
        return task["pid"] == task["tgid"] == pid and before["next"] == after["prev"] == address + offset
