"""Stack traces over every transport, of every dump."""

from __future__ import annotations

import pytest

import libkvm

ENDS = {"fault", "user", "no_stack"}  # the small dumps of x86-64 have no ORC tables


def test_every_thread_has_a_stack(kernel, dump):
    stacks = kernel.stacks()
    idle = [stack for stack in stacks if not stack.pid]

    assert [stack.pid for stack in stacks if stack.pid] == [thread.pid for thread in kernel.processes(threads=True)]
    assert len({stack.cpu for stack in stacks if stack.cpu is not None}) == sum(cpu.online for cpu in kernel.cpus())
    assert all(stack.comm.startswith("swapper/") and stack.cpu is not None for stack in idle)
    assert {stack.end for stack in stacks} <= (ENDS if not dump.arm64 else {"bottom", "user", "no_stack"})
    for stack in stacks:
        assert (stack.error is not None) == (stack.end == "fault")


def test_of_one_and_of_a_cpu(kernel, dump):
    every = kernel.stacks()
    kthreadd = next(stack for stack in every if stack.pid == 2)
    again = kernel.stack(2)

    assert (again.frames, again.end) == (kthreadd.frames, kthreadd.end)
    assert (again.error and again.error.reason) == (kthreadd.error and kthreadd.error.reason)
    assert again.frames[dump.arm64].symbol == "__schedule"
    for stack in every:
        if stack.cpu is not None:
            of_cpu = kernel.stack(cpu=stack.cpu)
            assert (of_cpu.pid, of_cpu.frames, of_cpu.end) == (stack.pid, stack.frames, stack.end)


def test_failures(kernel):
    with pytest.raises(libkvm.ProcessError):
        kernel.stack(999_999)
    with pytest.raises(libkvm.RequestError):
        kernel.stack(cpu=4_000)
