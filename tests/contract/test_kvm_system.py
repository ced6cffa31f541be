"""What the kernel counts, its pages and per-CPU data, of every dump: against the truth of its guest."""

from __future__ import annotations

import os

import pytest

import libkvm
from libkvm import Nlist, kvm_geterr, kvm_nlist


def test_getloadavg_is_what_proc_said_at_about_that_time(kd, kernel, dump):
    samples = libkvm.kvm_getloadavg(kd)

    assert libkvm.kvm_getloadavg(kd, [0.0] * 3, 3) == 3
    assert samples == list(kernel.load_average()) == list(kernel.info.load_average)
    for value, shown in zip(samples, dump.truth["loadavg"].split(), strict=False):
        assert value == pytest.approx(float(shown), abs=0.5)


def test_getswapinfo_is_what_proc_swaps_said(kd, kernel, dump):
    areas = libkvm.kvm_getswapinfo(kd)
    rows = [line.split() for line in (dump.truth["swaps"] or "").splitlines()[1:]]

    assert [[area.path, area.kind, str(area.size_bytes // 1024), str(area.priority)] for area in areas] == [
        [path, kind, size, priority] for path, kind, size, _, priority in rows
    ]
    assert areas.size_bytes == sum(int(row[2]) * 1024 for row in rows)
    assert kernel.swap_areas() == areas


def test_cpus(kd, kernel, dump):
    cpus = kernel.cpus()

    assert libkvm.kvm_getncpus(kd) == dump.truth["cpus_online"] == sum(cpu.online for cpu in cpus)
    assert libkvm.kvm_getmaxcpu(kd) == kernel.max_cpus() > max(cpu.number for cpu in cpus)
    assert [libkvm.kvm_getpcpu(kd, cpu.number) for cpu in cpus] == cpus
    assert libkvm.kvm_getpcpu(kd, libkvm.kvm_getmaxcpu(kd)) is None
    assert libkvm.kvm_getpcpu(kd, -1) == -1


def test_per_cpu_data_by_each_way(kd, kernel):
    nl = [Nlist("current_task")]
    if kvm_nlist(kd, nl) != 0:
        pytest.skip("this kernel keeps its current task elsewhere")
    base = nl[0].n_value
    found = []
    for cpu in kernel.cpus():
        buf = bytearray(8)
        assert libkvm.kvm_read_zpcpu(kd, base, buf, 8, cpu.number) == 8
        assert libkvm.kvm_dpcpu_setcpu(kd, cpu.number) == 0
        assert kvm_nlist(kd, nl) == 0
        assert kernel.read(nl[0].n_value, 8) == buf
        found.append(int.from_bytes(buf, "little"))
        if cpu.current_task is not None:
            assert found[-1] == cpu.current_task
    assert libkvm.kvm_counter_u64_fetch(kd, base) == sum(found) % 2**64
    assert libkvm.kvm_dpcpu_setcpu(kd, 10**6) == -1
    assert kvm_geterr(kd) == "kvm_dpcpu_setcpu: CPU 1000000 too big"


def test_getcptime_adds_up(kd, kernel, dump):
    total, *cpus = kernel.cpu_times()
    states = libkvm.kvm_getcptime(kd)

    assert total.cpu == -1
    assert len(cpus) == dump.truth["cpus_online"]
    assert total.user_ns >= sum(cpu.user_ns for cpu in cpus)
    assert states[libkvm.CP_USER] == total.user_ns // 10**7
    assert states[libkvm.CP_IDLE] > 0


def test_walk_pages(kd, kernel, dump):
    pages: list[libkvm.Page] = []
    banner = dump.symbol("linux_banner")

    assert libkvm.kvm_walk_pages(kd, lambda page, into: into.append(page) or 1, pages) == 1
    starts = [page.virtual_address for page in pages]
    assert starts == sorted(set(starts))
    [home] = [page for page in pages if page.virtual_address <= banner < page.virtual_address + page.length]
    assert home.protection & libkvm.VM_PROT_READ
    physical = home.physical_address + banner - home.virtual_address
    assert kernel.read(physical, 5, physical=True) == b"Linux"
    if home.direct_address is not None:
        assert kernel.read(home.direct_address + banner - home.virtual_address, 5) == b"Linux"
    assert next(iter(kernel.pages(banner))).virtual_address in {home.virtual_address, banner & -4096}


def test_walk_pages_stops(kd):
    seen = []

    assert libkvm.kvm_walk_pages(kd, lambda page, arg: seen.append(page) or 0, None) == 0
    assert len(seen) == 1
    assert kvm_geterr(kd) == ""


def test_files(kd, kernel):
    everything = libkvm.kvm_getfiles(kd)
    pid = everything[0].pid

    assert [(file.pid, file.fd) for file in everything] == sorted((file.pid, file.fd) for file in everything)
    wanted = [file for file in everything if file.pid == pid]
    assert libkvm.kvm_getfiles(kd, libkvm.KERN_FILE_BYPID, pid) == wanted == kernel.files(pid)
    with pytest.raises(libkvm.ProcessError):
        kernel.files(4_000_000)


def test_threads_and_user_memory(kd, kernel, dump):
    pid = dump.named("bed-plain")
    each = dump.processes[pid]
    buf = bytearray(len(os.fsencode(each["argv"][0])))

    assert {thread.pid for thread in libkvm.kvm_getlwps(kd, pid)} == {thread["tid"] for thread in each["threads"]}
    assert libkvm.kvm_uread(kd, pid, each["arg_start"], buf) == len(buf)
    assert os.fsdecode(bytes(buf)) == each["argv"][0]
    assert libkvm.kvm_uread(kd, pid, 0x10, buf) == 0
    assert kvm_geterr(kd) == "invalid address (10)"
    with pytest.raises(libkvm.ProcessError):
        kernel.read(each["arg_start"], 1, pid=4_000_000)


def test_argv_and_environ_by_both_twins(kd, dump):
    pid = dump.named("bed-user")
    each = dump.processes[pid]

    assert libkvm.kvm_getargv(kd, pid) == libkvm.kvm_getargv2(kd, pid) == each["argv"]
    assert libkvm.kvm_getenvv(kd, pid) == libkvm.kvm_getenvv2(kd, pid) == each["env"]


def test_kerndisp_and_native(kd, kernel):
    assert libkvm.kvm_kerndisp(kd) == (kernel.info.kaslr_offset or 0)
    assert libkvm.kvm_native(kd) == 1
