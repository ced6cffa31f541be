"""kvm_nlist(3)."""

from __future__ import annotations

import pytest

from libkvm import N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Nlist, kvm_close, kvm_geterr, kvm_nlist

PER_CPU = {"current_task", "runqueues"}


def test_the_kernels_own_symbols_have_the_values_that_proc_kallsyms_showed(kd, dump):
    names = [name for name in dump.truth["kallsyms"] if name not in PER_CPU]
    nl = [Nlist(name) for name in names]

    assert kvm_nlist(kd, nl) == 0
    assert {entry.n_name: entry.n_value for entry in nl} == {name: dump.symbol(name) for name in names}
    assert {entry.n_type & ~N_EXT for entry in nl} <= {N_ABS, N_TEXT, N_DATA, N_BSS}


def test_types(kd):
    nl = [Nlist("_stext"), Nlist("jiffies"), Nlist("linux_banner")]

    assert kvm_nlist(kd, nl) == 0
    assert [entry.n_type for entry in nl] == [N_TEXT | N_EXT, N_DATA | N_EXT, N_DATA | N_EXT]


@pytest.mark.parametrize("end", [None, ""])
def test_a_name_that_is_not_found_is_counted_and_zeroed(kd, dump, end):
    nl = [Nlist("no_such_symbol", 9, 9, 9, 9), Nlist("init_task"), Nlist(end), Nlist("jiffies")]

    assert kvm_nlist(kd, nl) == 1
    assert nl[0] == Nlist("no_such_symbol")
    assert nl[1].n_value == dump.symbol("init_task")
    assert nl[3].n_value == 0


def test_a_leading_underscore_may_be_too_many(kd, dump):
    nl = [Nlist("_init_task"), Nlist("_stext"), Nlist("init_task"), Nlist("init_task")]

    assert kvm_nlist(kd, nl) == 0
    value = dump.symbol("init_task")
    assert [entry.n_value for entry in nl] == [value, dump.symbol("_stext"), value, value]


def test_many_names(kd):
    assert kvm_nlist(kd, [Nlist(f"no_such_symbol_{n}") for n in range(9000)]) == 9000


def test_a_closed_handle(kd):
    kvm_close(kd)

    assert kvm_nlist(kd, [Nlist("jiffies")]) == -1
    assert kvm_geterr(kd) == "Bad file descriptor"
