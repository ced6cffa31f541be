"""The C-style face without files: what answers, what is refused, and that nothing else is looked at."""

from __future__ import annotations

import pytest

import libkvm
from libkvm import KVM_NO_FILES, Nlist, kvm_close, kvm_geterr, kvm_nlist, kvm_openfiles
from unit.client.fake import BASE, USER
from unit.client.fake_system import COUNTER


@pytest.fixture
def bare(target):
    """A handle that was opened with KVM_NO_FILES."""
    opened = kvm_openfiles("/" + "x" * 5000, "nonexistent", "\udcff", KVM_NO_FILES | 1, None)
    yield opened
    kvm_close(opened)


def test_it_wins_over_bad_flags_and_names(bare, fake):
    request = fake.seen[0][1].open

    assert [(field.name, value) for field, value in request.ListFields()] == [("flags", KVM_NO_FILES)]
    assert libkvm.kvm_getkernelname(bare) == ""
    assert kvm_geterr(bare) == ""


def test_what_works(bare):
    assert len(libkvm.kvm_getprocs(bare, 0)) == len(libkvm.kvm_getproc2(bare, 0)) == 3
    assert len(libkvm.kvm_getlwps(bare, 1)) == 2
    assert libkvm.kvm_getargv2(bare, 1) == libkvm.kvm_getenvv2(bare, 1) == ["/sbin/init", "--quiet"]
    assert libkvm.kvm_getloadavg(bare, [], 3) == 3
    assert libkvm.kvm_getcptime(bare, []) == 0
    assert len(libkvm.kvm_getswapinfo(bare)) == 2
    assert libkvm.kvm_native(bare) == 1


@pytest.mark.parametrize(
    ("call", "arguments", "answer"),
    [
        (libkvm.kvm_read, (BASE, bytearray(1)), -1),
        (libkvm.kvm_write, (BASE, b""), -1),
        (libkvm.kvm_uread, (1, USER, bytearray(1)), 0),
        (libkvm.kvm_getargv, (1,), None),
        (libkvm.kvm_getenvv, (1,), None),
        (libkvm.kvm_getfiles, (), None),
        (libkvm.kvm_getmaxcpu, (), -1),
        (libkvm.kvm_getncpus, (), -1),
        (libkvm.kvm_getpcpu, (0,), -1),
        (libkvm.kvm_dpcpu_setcpu, (0,), -1),
        (libkvm.kvm_read_zpcpu, (COUNTER, bytearray(1), 1, 0), -1),
        (libkvm.kvm_counter_u64_fetch, (COUNTER,), -1),
        (libkvm.kvm_walk_pages, (lambda page, arg: 1,), 0),
        (libkvm.kvm_kerndisp, (), 0),
    ],
)
def test_what_does_not(bare, call, arguments, answer):
    assert call(bare, *arguments) == answer
    assert kvm_geterr(bare) == f"kvm_open called with KVM_NO_FILES, can't use {call.__name__}"


def test_names(bare, fake):
    nl = [Nlist("jiffies", n_value=9)]

    assert kvm_nlist(bare, nl) == -1
    assert (kvm_geterr(bare), nl[0].n_value) == ("bad namelist", 0)
    assert libkvm.kvm_dump_mkheader(bare, 0) == -1
    assert kvm_geterr(bare) == "don't use on live kernel"
    assert [name for name, _ in fake.seen] == ["OpenFiles"]
