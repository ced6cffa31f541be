"""Stacks of a kernel that changes while they are read: a dump's memory that a test changes at some reads."""

from __future__ import annotations

import lzma
from collections.abc import Callable

import pytest

from images import DATA
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.live_stack import LiveStacks
from kvmd.images.linux.tasks import Tasks
from kvmd.v1 import stack_pb2
from overlay import Overlay

from .conftest import Opened

KTHREADD = 2


class Changing(Overlay):
    """Calls a function before each read of the task's stack pointer."""

    def __init__(self, opened: Opened) -> None:
        kernel = opened.image.kernel
        tables = lzma.decompress((DATA / "debian-6.1-panic" / "orc.xz").read_bytes())
        super().__init__(kernel, {kernel.address("__start_orc_unwind_ip"): tables})
        self.then: Callable[[int], object] = lambda looks: None
        self.watched, self.looks = 0, 0

    def _read(self, address: int, length: int) -> bytes:
        if self.watched and address <= self.watched < address + length:
            self.looks += 1
            self.then(self.looks)
        return super()._read(address, length)


@pytest.fixture
def kernel(debian: Opened) -> Changing:
    return Changing(debian)


@pytest.fixture
def stacks(kernel: Changing) -> LiveStacks:
    return LiveStacks(kernel, Tasks(kernel))  # type: ignore[arg-type] # stands for a Kernel


def one(stacks: LiveStacks, pid: int = KTHREADD) -> stack_pb2.Stack:
    (stack,) = stacks.select(stack_pb2.GetStackRequest(pid=pid))
    return stack


def places(kernel: Changing, stacks: LiveStacks) -> dict[str, int]:
    """Where kthreadd's fields are."""
    address = one(stacks).task_address
    return {name: address + at for name, at in stacks._task.offsets.items()}  # type: ignore[attr-defined]


def test_a_task_that_sleeps(stacks: LiveStacks) -> None:
    stack = one(stacks)
    assert stack.frames[-1].symbol == "ret_from_fork"
    assert stack.end == stack_pb2.STACK_END_BOTTOM


def test_cpus_and_what_they_run_are_refused(stacks: LiveStacks) -> None:
    for request in (stack_pb2.GetStackRequest(cpu=1), stack_pb2.GetStackRequest(pid=1)):
        with pytest.raises(KvmError) as failure:
            list(stacks.select(request))
        assert failure.value.reason is Reason.TASK_RUNNING
    found = {stack.pid: stack for stack in stacks.select(stack_pb2.GetStackRequest())}
    assert len(found) == 76
    assert found[1].error.reason == "TASK_RUNNING"
    assert found[KTHREADD].end == stack_pb2.STACK_END_BOTTOM


def test_a_cpu_whose_task_sleeps_by_the_time_it_is_looked_at(kernel: Changing, stacks: LiveStacks) -> None:
    (init,) = (task for task, cpu in stacks._running.items() if cpu == 1)  # what a panicked kernel's CPU ran
    kernel.put(init + stacks._task.offsets["on_cpu"], 0, 4)  # type: ignore[attr-defined]
    with pytest.raises(KvmError) as failure:
        list(stacks.select(stack_pb2.GetStackRequest(cpu=1)))
    assert failure.value.reason is Reason.TASK_RUNNING


def test_a_task_that_is_still_being_switched_from(kernel: Changing, stacks: LiveStacks) -> None:
    kernel.put(places(kernel, stacks)["on_cpu"], 1, 4)
    with pytest.raises(KvmError) as failure:
        one(stacks)
    assert failure.value.reason is Reason.TASK_RUNNING


def test_a_task_that_ran_once_is_read_again(kernel: Changing, stacks: LiveStacks) -> None:
    place = places(kernel, stacks)
    # Each try reads the task's fields three times: before, to begin, and after.
    kernel.watched = place["sp"]
    kernel.then = lambda looks: looks == 3 and kernel.put(place["voluntary"], 77)
    assert one(stacks).end == stack_pb2.STACK_END_BOTTOM
    assert kernel.looks == 6


def test_a_task_that_runs_all_the_time(kernel: Changing, stacks: LiveStacks) -> None:
    place = places(kernel, stacks)
    kernel.watched = place["sp"]
    kernel.then = lambda looks: kernel.put(place["involuntary"], looks)
    with pytest.raises(KvmError) as failure:
        one(stacks)
    assert failure.value.reason is Reason.CHANGED
    assert kernel.looks == 12


def test_a_fault_of_a_moved_stack_is_none(kernel: Changing, stacks: LiveStacks) -> None:
    place = places(kernel, stacks)
    real = int.from_bytes(kernel.memory.kernel(place["sp"], 8), "little")
    kernel.watched = place["sp"]
    kernel.put(place["sp"], 0x1000)
    kernel.then = lambda looks: looks == 3 and kernel.put(place["sp"], real)
    assert one(stacks).end == stack_pb2.STACK_END_BOTTOM
    kernel.put(place["sp"], 0x1000)
    kernel.then = lambda looks: None
    with pytest.raises(KvmError) as failure:
        one(stacks)
    assert failure.value.reason is Reason.NOT_MAPPED
