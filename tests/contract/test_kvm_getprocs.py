"""kvm_getprocs(3) and the processes of the Python face, against what /proc showed in the guest."""

from __future__ import annotations

import pytest

import libkvm
from libkvm import Reason, kvm_geterr, kvm_getprocs


def gid(each, which: int) -> int:
    return int(each["status"]["Gid"].split()[which])


def pids(processes) -> list[int]:
    return [process.pid for process in processes]


def shown(kernel, dump) -> dict[int, dict]:
    """What /proc showed of the processes that are in the dump; at most one ended in between."""
    found = set(pids(kernel.processes()))
    assert found <= set(dump.processes)
    assert len(set(dump.processes) - found) <= 1
    return {pid: each for pid, each in dump.processes.items() if pid in found}


def test_every_process_is_there_in_order(kd, kernel, dump):
    found = kvm_getprocs(kd, libkvm.KERN_PROC_ALL, 0)

    assert pids(found) == sorted(shown(kernel, dump))


def test_the_fields_are_those_of_proc(kernel, dump):
    truth = shown(kernel, dump)
    for process in kernel.processes():
        each = truth[process.pid]
        uids = [int(word) for word in each["status"]["Uid"].split()]
        assert (process.ppid, process.pgid, process.sid) == (each["ppid"], each["pgrp"], each["session"])
        assert (process.uid, process.euid, process.gid, process.egid) == (*uids[:2], gid(each, 0), gid(each, 1))
        assert (process.nice, process.num_threads) == (each["nice"], each["num_threads"])
        assert process.kernel_thread == each["kthread"]
        assert each["comm"].startswith(process.comm)
        assert process.start_time_ns * dump.truth["user_hz"] // 10**9 == each["starttime_ticks"]
        if process.vsz_bytes is not None and process.pid != 1:  # the first grew while it recorded the others
            assert process.vsz_bytes == each["vsize"]
        assert (process.vsz_bytes is None) == (each["kthread"] or each["state"] == "Z")


def test_names_that_are_hard_to_parse(kernel):
    assert "bed title)x (" in {process.comm for process in kernel.processes()}


def test_each_filter_selects_what_it_says(kd, kernel, dump):
    truth = shown(kernel, dump)
    filters = {
        libkvm.KERN_PROC_PID: lambda each: each["pid"],
        libkvm.KERN_PROC_PGRP: lambda each: each["pgrp"],
        libkvm.KERN_PROC_SESSION: lambda each: each["session"],
        libkvm.KERN_PROC_UID: lambda each: each["euid"],
        libkvm.KERN_PROC_RUID: lambda each: each["uid"],
        libkvm.KERN_PROC_GID: lambda each: gid(each, 1),
        libkvm.KERN_PROC_RGID: lambda each: gid(each, 0),
    }
    for op, key in filters.items():
        values = {key(each) for each in truth.values()}
        for value in sorted(values)[:4]:
            wanted = [pid for pid, each in sorted(truth.items()) if key(each) == value]
            assert pids(kvm_getprocs(kd, op, value)) == wanted
        assert kvm_getprocs(kd, op, 4_000_000) == []


def test_terminals(kd, kernel, dump):
    with_one = [process.pid for process in kernel.processes() if process.tty is not None]
    without = pids(kvm_getprocs(kd, libkvm.KERN_PROC_TTY, libkvm.KERN_PROC_TTY_NODEV))

    assert sorted(with_one + without) == sorted(shown(kernel, dump))


def test_kernel_threads(kernel, dump):
    wanted = [pid for pid, each in sorted(shown(kernel, dump).items()) if each["kthread"]]

    assert pids(kernel.processes(kernel_threads=True)) == wanted


def test_threads(kernel, dump):
    wanted = {thread["tid"] for each in shown(kernel, dump).values() for thread in each["threads"]}
    found = kernel.processes(threads=True)

    assert set(pids(found)) == wanted
    assert {"bed-thread-a", "bed-thread-b"} <= {thread.comm for thread in found}


def test_an_unknown_operation(kd):
    assert kvm_getprocs(kd, 9, 0) is None
    assert kvm_geterr(kd) == "kvm_getprocs: Invalid argument"


def test_arguments_and_environment_where_they_are_in_memory(kernel, dump):
    swapped = dump.swapped("argenv")
    for pid, each in shown(kernel, dump).items():
        if each["kthread"] or each["state"] == "Z" or pid in swapped:
            continue
        assert kernel.argv(pid) == each["argv"]
        assert kernel.environ(pid) == each["env"]


def test_arguments_that_can_not_be_read_say_why(kernel, dump):
    truth = shown(kernel, dump)
    for pid in [pid for pid, each in truth.items() if each["kthread"] or each["state"] == "Z"]:
        with pytest.raises(libkvm.ProcessError) as caught:
            kernel.argv(pid)
        assert caught.value.reason is Reason.NO_USER_MEMORY
    for pid in (dump.named("bed-swapped"), dump.named("bed-filed")):
        with pytest.raises(libkvm.FaultError) as fault:
            kernel.argv(pid)
        assert fault.value.reason is Reason.NOT_PRESENT
    with pytest.raises(libkvm.ProcessError) as gone:
        kernel.argv(4_000_000)
    assert gone.value.reason is Reason.NO_SUCH_PROCESS


def test_a_list_with_arguments_agrees_with_asking_one_by_one(kernel):
    for process in kernel.processes(arguments=True):
        if process.args_error is None:
            assert kernel.argv(process) == list(process.args)
            continue
        with pytest.raises(libkvm.KvmError) as caught:
            kernel.argv(process)
        assert caught.value.reason is process.args_error.reason
