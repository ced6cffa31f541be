"""The C-style face: the calls beyond opening, reading and listing."""

from __future__ import annotations

import array
import ctypes
import errno
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

import libkvm
from kvmd.errors import Reason, error
from libkvm import (
    ARG_MAX,
    Nlist,
    kvm_close,
    kvm_counter_u64_fetch,
    kvm_dpcpu_setcpu,
    kvm_geterr,
    kvm_getpcpu,
    kvm_nlist,
    kvm_nlist2,
    kvm_openfiles,
    kvm_read2,
    kvm_read_zpcpu,
    kvm_uread,
    kvm_walk_pages,
    kvm_write,
)
from libkvm.compat.strings import _cut
from unit.client.fake import BASE, MEMORY, USER, USER_MEMORY
from unit.client.fake_system import COUNTER, PAGES, offset

END = BASE + len(MEMORY)


@pytest.fixture
def writable(target):
    opened = kvm_openfiles(None, None, None, 2, None)
    yield opened
    kvm_close(opened)


class TestWrite:
    def test_on_the_running_kernel(self, writable, fake):
        assert kvm_write(writable, BASE - 2**64, b"abc") == 3
        assert kvm_write(writable, BASE + 3, bytearray(b"defghi"), 2) == 2
        assert fake.memory[:6] == b"abcde" + MEMORY[5:6]
        assert kvm_write(writable, BASE, ctypes.c_uint32(0)) == 4
        assert fake.memory[:6] == bytes(4) + b"e" + MEMORY[5:6]

    @pytest.mark.parametrize("buf", [None, b"", b"x"])
    def test_a_dump_is_dead_even_for_no_bytes(self, kd, buf):
        assert kvm_write(kd, 0, buf, 0) == -1
        assert kvm_geterr(kd) == "kvm_write not implemented for dead kernels"

    def test_read_only_is_soft(self, live, capsys):
        assert kvm_write(live, BASE, b"x") == -1
        assert kvm_geterr(live) == "kvm_write: Bad file descriptor"
        assert ctypes.get_errno() == errno.EBADF
        assert capsys.readouterr().err == ""

    def test_faults(self, writable):
        assert kvm_write(writable, END - 3, b"abcdef") == 3
        assert kvm_geterr(writable) == "short write"
        assert kvm_write(writable, END, b"abcdef") == -1
        assert kvm_geterr(writable) == "kvm_write: Bad address"

    def test_policy(self, writable, fake):
        fake.fail["Write"] = error(Reason.POLICY_DENIED, "no", path="live")

        assert kvm_write(writable, BASE, b"x") == -1
        assert kvm_geterr(writable) == "kvm_write: Permission denied"

    def test_wrong_lengths(self, writable):
        assert kvm_write(writable, BASE, b"x", 2) == kvm_write(writable, BASE, b"x", -1) == -1
        assert kvm_geterr(writable) == "kvm_write: Invalid argument"


class TestProcesses:
    def test_getproc2(self, kd):
        assert libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_ALL, 0, 1) == libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_ALL, 0)
        assert libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_ALL, 0, -1) is None
        assert kvm_geterr(kd) == "kvm_getproc2: Invalid argument"
        assert ctypes.get_errno() == errno.EINVAL
        assert libkvm.kvm_getproc2(kd, 99, 0) is None

    def test_kernel_threads(self, kd):
        assert [process.pid for process in libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_KTHREAD, 7)] == [2]

    def test_getlwps(self, kd, loud, fake, capsys):
        assert [thread.pid for thread in libkvm.kvm_getlwps(kd, 1)] == [1, 9]
        assert libkvm.kvm_getlwps(loud, 77, 0xDEAD, 8) is None
        assert kvm_geterr(loud) == "kvm_getlwps: No such process"
        assert ctypes.get_errno() == errno.ESRCH
        assert libkvm.kvm_getlwps(kd, 1, 0, -1) is None
        assert kvm_geterr(kd) == "kvm_getlwps: Invalid argument"
        assert capsys.readouterr().err == ""
        fake.fail["GetProcs"] = error(Reason.CORRUPT_DATA, "a loop")
        assert libkvm.kvm_getlwps(loud, 1) is None
        assert capsys.readouterr().err == "prog: a loop\n"


@pytest.mark.parametrize("call", [libkvm.kvm_getargv, libkvm.kvm_getargv2, libkvm.kvm_getenvv, libkvm.kvm_getenvv2])
class TestStrings:
    def test_whole(self, kd, call):
        [init] = libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_PID, 1)

        assert call(kd, init) == call(kd, 1, 0) == call(kd, 1, ARG_MAX) == ["/sbin/init", "--quiet"]

    @pytest.mark.parametrize(
        ("nchr", "wanted"),
        [
            (1, [""]),
            (5, ["/sbi"]),
            (10, ["/sbin/ini"]),
            (11, ["/sbin/init"]),
            (12, ["/sbin/init", ""]),
            (18, ["/sbin/init", "--quie"]),
            (19, ["/sbin/init", "--quiet"]),
        ],
    )
    def test_nchr_counts_nuls(self, kd, fake, call, nchr, wanted):
        assert call(kd, 1, nchr) == wanted
        assert fake.seen[-1][1].max_bytes_read == nchr

    def test_failures_have_texts_and_are_soft(self, loud, capsys, call):
        assert call(loud, 2) is None
        assert kvm_geterr(loud) == "2 is a kernel thread"
        assert call(loud, 30) is None
        assert kvm_geterr(loud) == "swapped out"
        assert call(loud, 77) is None
        assert kvm_geterr(loud) == "no process 77"
        assert call(loud, 1, -1) is None
        assert capsys.readouterr().err == f"prog: {call.__name__}: Invalid argument\n"

    def test_more_than_arg_max(self, kd, call):
        if call.__name__.endswith("2"):
            assert call(kd, 1, ARG_MAX + 1) is None
            assert kvm_geterr(kd) == f"{call.__name__}: Invalid argument"
        else:
            assert call(kd, 1, ARG_MAX + 1) == ["/sbin/init", "--quiet"]


@given(st.lists(st.text(st.characters(exclude_characters="\0"), max_size=9), max_size=6), st.integers(1, 60))
def test_cutting_keeps_the_first_bytes_of_c(values, nchr):
    values = [os.fsdecode(value.encode("utf-8", "replace")) for value in values]
    packed = b"".join(os.fsencode(value) + b"\0" for value in values)
    kept = b"".join(os.fsencode(value) + b"\0" for value in _cut(values, nchr))

    assert len(kept) == min(len(packed), nchr)
    assert packed.startswith(kept[:-1])


class TestCounts:
    def test_getloadavg(self, kd):
        room, doubles, c_doubles, empty = [0.0] * 5, array.array("d", [0, 0]), (ctypes.c_double * 3)(), []

        assert libkvm.kvm_getloadavg(kd, room, 9) == 3
        assert room == [0.5, 0.25, 0.125, 0.0, 0.0]
        assert libkvm.kvm_getloadavg(kd, doubles) == 2
        assert libkvm.kvm_getloadavg(kd, c_doubles, 1) == 1
        assert list(c_doubles) == [0.5, 0, 0]
        assert libkvm.kvm_getloadavg(kd, empty, 3) == 3
        assert empty == [0.5, 0.25, 0.125] == libkvm.kvm_getloadavg(kd)
        assert libkvm.kvm_getloadavg(kd, room, -1) == -1
        assert libkvm.kvm_getloadavg(None, room, 3) == -1
        assert libkvm.kvm_getloadavg(None) is None

    def test_getcptime_is_in_ticks_and_rounds_as_proc_stat(self, kd, fake):
        wanted = [101, 201, 301, 601 + 701, 401 + 501]
        room = [0] * libkvm.CPUSTATES

        assert libkvm.kvm_getcptime(kd) == wanted
        assert libkvm.kvm_getcptime(kd, room) == 0
        assert room == wanted
        fake.fail["GetCpuTimes"] = error(Reason.NO_TYPES, "no types")
        assert libkvm.kvm_getcptime(kd, room) == -1
        assert kvm_geterr(kd) == "no types"
        assert libkvm.kvm_getcptime(None) is None

    def test_getswapinfo(self, kd):
        swap = libkvm.kvm_getswapinfo(kd)

        assert [area.path for area in swap] == ["/dev/vda", "/swap\x1b\udcff"]
        assert (swap.size_bytes, swap.used_bytes) == (9216, 4096)
        assert libkvm.kvm_getswapinfo(None) is None

    def test_getfiles(self, kd):
        assert [file.pid for file in libkvm.kvm_getfiles(kd)] == [1, 30]
        assert [file.pid for file in libkvm.kvm_getfiles(kd, libkvm.KERN_FILE_BYPID, 30)] == [30]
        assert libkvm.kvm_getfiles(kd, libkvm.KERN_FILE_BYFILE, 0) == libkvm.kvm_getfiles(kd, 0, 0)
        assert libkvm.kvm_getfiles(kd, 9, 0) is None
        assert kvm_geterr(kd) == "kvm_getfiles: Invalid argument"
        assert libkvm.kvm_getfiles(kd, libkvm.KERN_FILE_BYPID, 77) is None


class TestPerCpu:
    def test_counts(self, kd):
        assert (libkvm.kvm_getmaxcpu(kd), libkvm.kvm_getncpus(kd)) == (4, 2)
        assert (libkvm.kvm_getmaxcpu(None), libkvm.kvm_getncpus(None)) == (-1, -1)

    def test_getpcpu_has_three_outcomes(self, kd, fake):
        assert kvm_getpcpu(kd, 1).offset == offset(1) % 2**64
        assert kvm_getpcpu(kd, 2) is None
        assert kvm_getpcpu(kd, 99) is None
        assert kvm_getpcpu(kd, -1) == -1
        fake.fail["GetCpus"] = error(Reason.NO_TYPES, "no types")
        assert kvm_getpcpu(kd, 1) == -1

    def test_a_selected_cpu_moves_per_cpu_symbols_and_no_others(self, kd):
        nl = [Nlist("counter"), Nlist("_stext"), Nlist("__per_cpu_end")]
        kvm_nlist(kd, nl)
        assert nl[0].n_value == COUNTER
        assert kvm_dpcpu_setcpu(kd, 3) == 0
        assert kvm_nlist2(kd, nl) == 0
        assert [entry.n_value for entry in nl] == [BASE + 0x410, BASE, 0x3000]
        assert kvm_dpcpu_setcpu(kd, 0) == 0
        kvm_nlist(kd, nl)
        assert nl[0].n_value == BASE + 0x110

    @pytest.mark.parametrize(("cpu", "text"), [(2, "CPU 2 not found"), (4, "CPU 4 too big"), (-1, "Invalid argument")])
    def test_cpus_that_are_not_there(self, kd, cpu, text):
        assert kvm_dpcpu_setcpu(kd, cpu) == -1
        assert kvm_geterr(kd) == f"kvm_dpcpu_setcpu: {text}"
        assert kvm_read_zpcpu(kd, COUNTER, bytearray(8), 8, cpu) == -1
        assert kvm_geterr(kd) == f"kvm_read_zpcpu: {text}"

    def test_read_zpcpu(self, kd):
        buf = bytearray(8)

        assert kvm_read_zpcpu(kd, COUNTER, buf, 4, 1) == 4
        assert buf == MEMORY[0x210:0x214] + bytes(4)
        assert kvm_read_zpcpu(kd, COUNTER, buf, None, 3) == 8

    def test_counter_u64_fetch_adds_up_over_the_possible_cpus(self, kd, fake):
        wanted = sum(int.from_bytes(MEMORY[at : at + 8], "little") for at in (0x110, 0x210, 0x410))

        assert kvm_counter_u64_fetch(kd, COUNTER) == wanted % 2**64
        assert kvm_counter_u64_fetch(kd, 8) == -1
        assert "_kvm_kvatop" in kvm_geterr(kd)
        fake.cpu_offsets = False
        assert kvm_counter_u64_fetch(kd, COUNTER) == -1
        assert "per-CPU data of CPU 0" in kvm_geterr(kd)
        assert kvm_dpcpu_setcpu(kd, 1) == -1
        assert kvm_geterr(kd) == "kvm_dpcpu_setcpu: init failed"

    def test_counter_u64_fetch_of_the_running_kernel_is_soft(self, live, capsys):
        assert kvm_counter_u64_fetch(live, 8) == -1
        assert kvm_geterr(live) == "kvm_counter_u64_fetch: Bad address"
        assert capsys.readouterr().err == ""


class TestWalkPages:
    def test_all(self, kd):
        seen = []

        assert kvm_walk_pages(kd, lambda page, arg: arg.append(page) or 1, seen) == 1
        assert len(seen) == PAGES

    def test_stopping(self, kd, fake):
        seen = []

        assert kvm_walk_pages(kd, lambda page, arg: seen.append(arg) or len(seen) < 3, "arg") == 0
        assert seen == ["arg"] * 3
        assert fake.walk_ended.wait(10)
        assert kvm_geterr(kd) == ""

    def test_failure(self, kd, fake):
        fake.fail["WalkPages"] = error(Reason.UNSUPPORTED, "no page tables")

        assert kvm_walk_pages(kd, lambda page, arg: 1) == 0
        assert kvm_geterr(kd) == "no page tables"

    def test_what_the_callback_raises_is_raised(self, kd, fake):
        with pytest.raises(ZeroDivisionError):
            kvm_walk_pages(kd, lambda page, arg: 1 / 0)
        assert fake.walk_ended.wait(10)
        with pytest.raises(TypeError):
            kvm_walk_pages(kd, None)


class TestUread:
    def test_it(self, kd):
        buf = bytearray(12)
        [process] = libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_PID, 30)

        assert kvm_uread(kd, process, USER, buf) == 12
        assert buf == USER_MEMORY[30]
        assert kvm_uread(kd, 1, USER, buf, 6) == 6
        assert buf == b"memory" + USER_MEMORY[30][6:]

    def test_failures_answer_0_and_are_soft(self, loud, capsys):
        buf = bytearray(20)
        end = USER + len(USER_MEMORY[30])

        assert kvm_uread(loud, 30, end - 3, buf) == 0
        assert kvm_geterr(loud) == f"invalid address ({end:x})"
        assert buf[:3] == USER_MEMORY[30][-3:]
        assert kvm_uread(loud, 2, USER, buf) == 0
        assert kvm_geterr(loud) == "2 is a kernel thread"
        assert capsys.readouterr().err == ""
        assert kvm_uread(loud, 1, USER, buf, 21) == kvm_uread(None, 1, USER, buf) == 0
        with pytest.raises(TypeError):
            kvm_uread(loud, 1, USER, b"read-only")


def test_the_64_bit_twins(kd):
    nl, buf = [Nlist("jiffies")], bytearray(4)

    assert kvm_nlist2(kd, nl) == 0
    assert kvm_read2(kd, BASE, buf) == 4
    assert buf == MEMORY[:4]


def test_native_and_kerndisp(kd, live):
    assert libkvm.kvm_native(kd) == libkvm.kvm_native(live) == 1
    assert libkvm.kvm_native(None) == libkvm.kvm_kerndisp(None) == 0
    assert libkvm.kvm_kerndisp(kd) == 0x1000


def test_dump_headers(kd, loud, live, capsys):
    file = io.BytesIO()

    assert libkvm.kvm_dump_mkheader(kd, 0) == libkvm.kvm_dump_wrtheader(kd, file, 0) == libkvm.kvm_dump_inval(kd) == -1
    assert kvm_geterr(kd) == "bad namelist"
    assert libkvm.kvm_dump_mkheader(loud, 0) == -1
    assert libkvm.kvm_dump_mkheader(live, 0) == libkvm.kvm_dump_inval(live) == -1
    assert libkvm.kvm_dump_wrtheader(live, file, 0) == -1
    assert capsys.readouterr().err.splitlines() == [
        "prog: already has a dump header",
        "prog: don't use on live kernel",
        "prog: clearing dump on live kernel",
        "prog: no valid dump header(s)",
    ]
    assert file.getvalue() == b""
    assert libkvm.kvm_dump_inval(None) == -1


def test_a_closed_handle(kd):
    kvm_close(kd)

    assert kvm_write(kd, BASE, b"") == kvm_getpcpu(kd, 0) == -1
    assert libkvm.kvm_getswapinfo(kd) is libkvm.kvm_getfiles(kd) is libkvm.kvm_getargv(kd, 1) is None
    assert libkvm.kvm_native(kd) == 0
    assert kvm_geterr(kd) == "Bad file descriptor"
