"""Stack traces of a dump's tasks and CPUs.

A task that doesn't run has left its registers where its architecture's :mod:`~kvmd.images.linux.unwinders` says; those
of one that runs are where :mod:`~kvmd.images.linux.prstatus` finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.code import Code
from kvmd.images.linux.cpus import Cpus
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.inlined import Inlined
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.prstatus import SavedRegisters
from kvmd.images.linux.tasks import Tasks
from kvmd.images.linux.unwind import At, Stop
from kvmd.images.linux.unwinders import unwinder_of
from kvmd.v1 import error_pb2, stack_pb2, system_pb2

_TASK = {
    "pid": ("pid",),
    "comm": ("comm",),
    "stack": ("stack",),
    "sp": ("thread.sp", "thread.cpu_context.sp"),
    "fp": ("thread.cpu_context.fp",),
    "pc": ("thread.cpu_context.pc",),
    "on_cpu": ("on_cpu",),
    "voluntary": ("nvcsw",),
    "involuntary": ("nivcsw",),
    "start": ("start_boottime", "real_start_time"),
}


class Stacks:
    """The stacks of one kernel.

    :raises KvmError: UNSUPPORTED but on x86-64 and arm64; NO_TYPES, NO_SYMBOLS.
    """

    def __init__(self, kernel: Kernel, tasks: Tasks) -> None:
        self._kernel = kernel
        self._tasks = tasks
        self._cpus = Cpus(kernel)
        prog, read = kernel.prog, kernel.memory.kernel
        self._task: Callable[[int], dict[str, Any]] = Fields(prog, read, "struct task_struct", _TASK)
        self._unwinder = unwinder_of(kernel)
        self._inlined = Inlined(kernel)

    @cached_property
    def _code(self) -> Code:
        return Code(self._kernel)

    @cached_property
    def _registers(self) -> SavedRegisters:
        return SavedRegisters(self._kernel, self._cpus, self._unwinder.registers)

    def select(self, request: stack_pb2.GetStackRequest) -> Iterator[stack_pb2.Stack]:
        """Unwind what is asked for; of all, what fails for one task is told in its stack.

        :raises KvmError: NO_SUCH_PROCESS, BAD_ARGUMENT for a CPU that isn't there, TASK_RUNNING; NO_TYPES, NO_SYMBOLS,
            CORRUPT_DATA, or the fault of a page that holds tasks, CPUs or the code's tables.
        """
        which = request.WhichOneof("whose")
        if which == "pid":
            yield self.of(self._tasks.find(request.pid))
        elif which == "cpu":
            yield self.of(self._task_of(request.cpu))
        else:
            yield from self._all()

    @cached_property
    def _running(self) -> dict[int, int]:
        """What the CPUs run: the address of the task, and the CPU."""
        return {self._runner(cpu): cpu.number for cpu in self._cpus.describe().cpus if cpu.online}

    def _runner(self, cpu: system_pb2.Cpu) -> int:
        """The task of a CPU: on x86-64 the next one's stack is in use before it is the current one (__switch_to)."""
        registers = self._registers.of(cpu.number)
        following = self._cpus.following(cpu) if registers else cpu.current_task
        if registers and following != cpu.current_task:
            with suppress(Stop):  # in user space: nothing is switched there
                if self._unwinder.entered(registers).sp in self._own(self._task(following)):
                    return following
        return cpu.current_task

    def _own(self, task: dict[str, Any]) -> range:
        return range(task["stack"], task["stack"] + self._unwinder.stack_size)

    def _cpu(self, address: int, _task: dict[str, Any]) -> int | None:
        """The CPU that runs a task."""
        return self._running.get(address)

    def _task_of(self, number: int) -> int:
        for task, cpu in self._running.items():
            if cpu == number:
                return task
        raise error(Reason.BAD_ARGUMENT, f"there is no CPU {number}, or it is offline", cpu=number)

    def _all(self) -> Iterator[stack_pb2.Stack]:
        # Idle tasks have pid 0 and are in no list.
        idle = [task for task in self._running if not self._task(task)["pid"]]
        yield from map(self._told, idle)
        yield from map(self._told, self._tasks.walk(threads=True))

    def _told(self, address: int) -> stack_pb2.Stack:
        try:
            return self.of(address)
        except KvmError as e:
            stack = stack_pb2.Stack(task_address=address, error=_wire(e))
            try:
                task = self._task(address)
            except KvmError:
                return stack
            stack.pid, stack.comm = task["pid"], task["comm"].split(b"\0")[0]
            return stack

    def of(self, address: int) -> stack_pb2.Stack:
        """Unwind the stack of the task at an address.

        :raises KvmError: TASK_RUNNING; the fault of a page that holds the task.
        """
        with self._kernel.reading("a stack"):
            task = self._task(address)
            stack = stack_pb2.Stack(pid=task["pid"], comm=task["comm"].split(b"\0")[0], task_address=address)
            cpu = self._cpu(address, task)
            if cpu is not None:
                stack.cpu = cpu
            try:
                start = self._start(task, cpu)
            except Stop as stop:
                stack.end = stop.end
                return stack
            self._unwind(stack, start, self._own(task))
            return stack

    def _start(self, task: dict[str, Any], cpu: int | None) -> At:
        if cpu is not None:
            registers = self._registers.of(cpu)
            if registers is None:
                message = f"task {task['pid']} runs on CPU {cpu}, whose registers the image doesn't hold"
                raise error(Reason.TASK_RUNNING, message, pid=task["pid"], cpu=cpu)
            return self._unwinder.entered(registers)
        if not task["stack"]:
            raise Stop(stack_pb2.STACK_END_NO_STACK)
        return self._unwinder.asleep(task)

    def _unwind(self, stack: stack_pb2.Stack, start: At, own: range) -> None:
        walk = self._unwinder.walk(self._code, own)
        for at in walk.frames(start):
            name, begin, module = self._code.name(at.code) if at.pc else ("", 0, "")
            for inline in self._inlined.at(at.code) if name and not module else ():
                stack.frames.add(pc=at.pc, symbol=inline, kind=stack_pb2.FRAME_KIND_INLINE)
            offset = at.pc - begin if name else 0
            stack.frames.add(pc=at.pc, symbol=name, offset=offset, module=module, kind=_kind(at))
        stack.end = walk.end
        if walk.error is not None:
            stack.error.CopyFrom(_wire(walk.error))


def _kind(at: At) -> stack_pb2.FrameKind:
    if at.found:
        return stack_pb2.FRAME_KIND_FOUND
    return stack_pb2.FRAME_KIND_INTERRUPTED if at.exact else stack_pb2.FRAME_KIND_CALL


def _wire(e: KvmError) -> error_pb2.Error:
    return error_pb2.Error(reason=e.reason.value, message=e.message, metadata=e.metadata)
