"""Stack traces of the running kernel's tasks that don't run, read while they stayed where they were.

A task that was put on a CPU and taken off again has been counted (Linux kernel/sched/core.c, __schedule: ``nvcsw`` or
``nivcsw`` of the task that is switched from), so that a stack whose task had the same counts and stack pointer before
and after, and did not run, is what it was at one moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.live_chain import changed
from kvmd.images.linux.stack import Stacks
from kvmd.images.linux.unwind import At
from kvmd.v1 import stack_pb2, system_pb2

_TRIES = 4


class LiveStacks(Stacks):
    """The stacks of the running kernel."""

    def select(self, request: stack_pb2.GetStackRequest) -> Iterator[stack_pb2.Stack]:
        """Unwind as the base class does; modules and CPUs may have come and gone since the last call.

        :raises KvmError: as the base class; TASK_RUNNING for every CPU; CHANGED.
        """
        self.__dict__.pop("_code", None)
        self.__dict__.pop("_running", None)
        return super().select(request)

    def of(self, address: int) -> stack_pb2.Stack:
        """Unwind a stack as it was at one moment.

        :raises KvmError: TASK_RUNNING; CHANGED if the task ran each time; the fault of a page that holds it.
        """
        failure: KvmError | None = None
        for _ in range(_TRIES):
            before = self._task(address)
            try:
                stack = super().of(address)
            except KvmError as e:
                failure = e
                if self._task(address) == before:
                    raise
                continue
            if self._task(address) == before:
                return stack
        raise failure or changed(f"the stack of task {before['pid']}")

    def _task_of(self, number: int) -> int:
        # What it ran may sleep by now, and another run there: then its stack would be that of no CPU.
        raise _runs(self._task(super()._task_of(number)))

    def _runner(self, cpu: system_pb2.Cpu) -> int:
        return cpu.current_task

    def _cpu(self, address: int, task: dict[str, Any]) -> int | None:
        if task["on_cpu"] is not None:  # which says it better, as long as there may be several CPUs
            return None
        self.__dict__.pop("_running", None)
        return super()._cpu(address, task)

    def _start(self, task: dict[str, Any], cpu: int | None) -> At:
        if cpu is not None or task["on_cpu"]:
            raise _runs(task)
        return super()._start(task, None)


def _runs(task: dict[str, Any]) -> KvmError:
    message = f"task {task['pid']} is running; of the running kernel, stacks of others can be unwound"
    return error(Reason.TASK_RUNNING, message, pid=task["pid"])
