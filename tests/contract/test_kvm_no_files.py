"""KVM_NO_FILES: what /proc shows this user, and nothing else."""

from __future__ import annotations

import os

import pytest

import libkvm
from libkvm import Nlist, Reason, kvm_geterr, kvm_nlist


def test_this_process_sees_itself(bare, transport):
    me = os.getpid()
    [mine] = libkvm.kvm_getproc2(bare, libkvm.KERN_PROC_PID, me)

    assert (mine.pid, mine.ppid, mine.uid, mine.euid) == (me, os.getppid(), os.getuid(), os.geteuid())
    assert me in {process.pid for process in libkvm.kvm_getprocs(bare, libkvm.KERN_PROC_ALL, 0)}
    with open("/proc/self/cmdline", "rb") as file:
        assert [os.fsencode(word) for word in libkvm.kvm_getargv2(bare, mine)] == file.read().split(b"\0")[:-1]
    if transport == "tls":  # nobody comes from another host with rights on this one
        assert libkvm.kvm_getenvv2(bare, mine) is None
        return
    with open("/proc/self/environ", "rb") as file:
        assert [os.fsencode(word) for word in libkvm.kvm_getenvv2(bare, mine)] == file.read().split(b"\0")[:-1]
    before = set(map(int, os.listdir("/proc/self/task")))
    found = {thread.pid for thread in libkvm.kvm_getlwps(bare, me)}
    after = set(map(int, os.listdir("/proc/self/task")))
    assert before & after <= found  # others came and went
    assert me in found


def test_counts(bare):
    assert libkvm.kvm_getloadavg(bare) == pytest.approx(os.getloadavg(), abs=1)
    with open("/proc/stat") as file:
        user, nice, *_ = (int(word) for word in file.readline().split()[1:])
    states = libkvm.kvm_getcptime(bare)
    assert states[libkvm.CP_USER] == pytest.approx(user, abs=500)
    assert states[libkvm.CP_NICE] == pytest.approx(nice, abs=500)
    with open("/proc/swaps") as file:
        assert len(libkvm.kvm_getswapinfo(bare)) == len(file.readlines()) - 1


def test_no_other_process_has_this_id(bare):
    assert libkvm.kvm_getproc2(bare, libkvm.KERN_PROC_PID, 4_000_000) == []
    assert libkvm.kvm_getlwps(bare, 4_000_000) is None
    assert libkvm.kvm_getargv2(bare, 4_000_000) is None
    assert kvm_geterr(bare) != ""


def test_the_rest_is_refused(bare):
    assert kvm_nlist(bare, [Nlist("jiffies")]) == -1
    assert kvm_geterr(bare) == "bad namelist"
    assert libkvm.kvm_write(bare, 0, None, 0) == -1
    assert kvm_geterr(bare) == "kvm_open called with KVM_NO_FILES, can't use kvm_write"
    assert libkvm.kvm_getkernelname(bare) == ""


def test_the_python_face(client):
    with client.open("/nonexistent", no_files=True) as kernel:
        assert kernel.load_average()
        assert kernel.cpu_times()[0].cpu == -1
        for call in (lambda: kernel.read(0, 1), lambda: kernel.symbol("x"), lambda: next(iter(kernel.pages()))):
            with pytest.raises(libkvm.KvmError) as caught:
                call()
            assert caught.value.reason is Reason.NO_FILES
