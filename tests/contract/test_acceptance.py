"""A14 to A33 of the acceptance list derived from libkvm's sources, by number, on Linux dumps.

A18 to A21 are stated for NetBSD's kcore files, and hold here for the same situations in Linux dumps; of A23 and A24 the
refusals are tested. The cases of BSD dumps, A17 to A27, are in test_bsd.py.
"""

from __future__ import annotations

import ctypes
import errno
import io
import itertools
import os
import struct
import threading

import pytest

import bsd
import libkvm
from libkvm import ErrBuf, Nlist, Reason, kvm_close, kvm_geterr, kvm_nlist, kvm_open, kvm_openfiles, kvm_read

PAGE = 4096
NOWHERE = 0x10


def test_a14_flags(one):
    for flags in (os.O_WRONLY, os.O_CREAT, os.O_WRONLY | os.O_CREAT):
        errbuf = ErrBuf()
        assert kvm_openfiles(None, one.path, None, flags, errbuf) is None
        assert str(errbuf) == "bad flags arg"
        kd = kvm_openfiles(None, one.path, None, flags | libkvm.KVM_NO_FILES, errbuf)
        assert kd is not None
        assert kvm_close(kd) == 0


def test_a15_the_length_of_an_execfiles_name(one):
    for length, refused in ((1023, False), (1024, True)):
        errbuf = ErrBuf()
        assert kvm_openfiles("/" + "x" * (length - 1), one.path, None, os.O_RDONLY, errbuf) is None
        assert (str(errbuf) == "exec file name too long") is refused
        kd = kvm_openfiles("/" + "x" * (length - 1), None, None, libkvm.KVM_NO_FILES, errbuf)
        assert kd is not None
        assert kvm_close(kd) == 0


def test_a16_no_files(bare):
    assert kvm_read(bare, 0, bytearray(1)) == -1
    assert kvm_geterr(bare) == "kvm_open called with KVM_NO_FILES, can't use kvm_read"
    assert kvm_nlist(bare, [Nlist("jiffies")]) == -1
    assert kvm_geterr(bare) == "bad namelist"
    [me] = libkvm.kvm_getproc2(bare, libkvm.KERN_PROC_PID, os.getpid(), 0)
    assert me.pid == os.getpid()


def test_a17_nlist(kd, dump):
    for end in (None, ""):
        nl = [Nlist("jiffies"), Nlist("init_task"), Nlist(end), Nlist("no_such_symbol")]
        assert kvm_nlist(kd, nl) == 0
        nl[0].n_name = "no_such_symbol"
        assert kvm_nlist(kd, nl) == 1
        assert (nl[0].n_type, nl[0].n_value) == (0, 0)
        assert nl[1].n_value == dump.symbol("init_task")


def test_a17_a_stripped_execfile(client, one, dumps):
    with client.open(one.path) as kernel:
        build_id = bytes.fromhex(kernel.info.build_id)
    note = struct.pack("<III", 4, len(build_id), 3) + b"GNU\0" + build_id
    (dumps / "vmlinux-stripped").write_bytes(bsd.elf(2, bsd.X86_64, [(".notes", 7, 2, 0, note)]))
    kd = kvm_openfiles(dumps / "vmlinux-stripped", one.path, None, os.O_RDONLY, None)
    nl = [Nlist("jiffies", n_type=9, n_value=9)]

    assert kvm_nlist(kd, nl) == -1
    assert kvm_geterr(kd) == "bad namelist"
    assert nl == [Nlist("jiffies")]
    assert kvm_read(kd, one.symbol("linux_banner"), buf := bytearray(13)) == 13
    assert buf == b"Linux version"
    assert kvm_close(kd) == 0


def test_a18_reads_within_a_page_across_pages_and_off_the_map(kd, dump):
    banner = dump.symbol("linux_banner")
    within, across = bytearray(64), bytearray(2 * PAGE)
    start = banner & -PAGE

    assert kvm_read(kd, banner, within) == 64
    assert within.startswith(b"Linux version")
    assert kvm_read(kd, start, across) == 2 * PAGE
    assert across[banner - start :].startswith(within[:14])
    assert kvm_read(kd, NOWHERE, within) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({NOWHERE:x})"
    last = (1 << 64) - PAGE  # nothing is mapped at the very end, nor is what comes before the first page
    assert kvm_read(kd, last, within) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({last:x})"


def test_a18_an_unmapped_second_page_takes_the_first_back(kd, kernel):
    edge = next(
        page.virtual_address + page.length
        for page, after in itertools.pairwise(kernel.pages())
        if page.present and page.virtual_address + page.length != after.virtual_address
    )
    buf = bytearray(PAGE)

    assert kvm_read(kd, edge - 8, buf, 8) == 8
    assert kvm_read(kd, edge - 8, buf) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({edge:x})"


def test_a19_reads_inside_a_large_page(kd, kernel, dump):
    address = dump.data
    parts = bytearray()
    whole = bytearray(3 * PAGE)

    assert kvm_read(kd, address, whole) == len(whole)
    for part in range(3):
        buf = bytearray(PAGE)
        assert kvm_read(kd, address + part * PAGE, buf) == PAGE
        parts += buf
    assert parts == whole


def test_a20_a_hole_in_physical_memory_is_no_data(kernel, dump):
    lines = [line for line in dump.truth["iomem"].splitlines() if line.endswith((" : PCI Bus 0000:00", "@10000000"))]
    holes = [int(line.split("-")[0], 16) for line in lines]
    beyond = min(hole for hole in holes if hole > 1 << 20)  # where RAM ends, or has a hole
    with pytest.raises(libkvm.FaultError) as caught:
        kernel.read(beyond, 8, physical=True)
    assert (caught.value.reason, caught.value.address) == (Reason.BEYOND_DUMP, beyond)


def test_a21_what_is_no_dump_does_not_open(odd):
    errbuf = ErrBuf()

    assert kvm_openfiles(None, odd / "some-file", None, os.O_RDONLY, errbuf) is None
    assert str(errbuf) != ""


def test_a22_reading_nothing(kd):
    assert kvm_read(kd, NOWHERE, bytearray()) == 0
    assert kvm_geterr(kd) == ""


def test_a23_a24_dump_headers_are_refused(kd, bare):
    file = io.BytesIO()

    assert libkvm.kvm_dump_mkheader(kd, 0) == -1
    assert kvm_geterr(kd) == "already has a dump header"
    assert libkvm.kvm_dump_wrtheader(kd, file, 0) == -1
    assert kvm_geterr(kd) == "no valid dump header(s)"
    assert libkvm.kvm_dump_mkheader(bare, 0) == -1
    assert kvm_geterr(bare) == "don't use on live kernel"
    assert libkvm.kvm_dump_inval(bare) == -1
    assert kvm_geterr(bare) == "clearing dump on live kernel"
    assert file.getvalue() == b""


def test_a28_an_empty_corefile(odd):
    errbuf = ErrBuf()

    assert kvm_openfiles(None, odd / "empty", None, os.O_RDONLY, errbuf) is None
    assert str(errbuf) == "empty file: Invalid argument"


def test_a29_errbuf_ends_at_2047_bytes():
    errbuf, big = ErrBuf(), bytearray(b"x" * 4096)
    name = "/" + "y" * 3000

    assert kvm_openfiles(None, name, None, os.O_RDONLY, errbuf) is None
    assert len(errbuf) == libkvm.POSIX2_LINE_MAX
    assert errbuf[2047] == 0
    assert kvm_openfiles(None, name, None, os.O_RDONLY, big) is None
    assert big.index(0) <= 2047
    assert big[2048:] == b"x" * 2048


def test_a30_hard_errors_go_to_stderr_and_soft_ones_do_not(loud, capsys):
    assert kvm_read(loud, NOWHERE, bytearray(8)) == -1
    assert capsys.readouterr().err == f"prog: _kvm_kvatop({NOWHERE:x})\n"
    assert kvm_geterr(loud) == ""
    assert libkvm.kvm_getlwps(loud, 4_000_000) is None
    assert capsys.readouterr().err == ""
    assert kvm_geterr(loud) == "kvm_getlwps: No such process"


def test_a31_each_filter_lists_what_it_says(kd):
    everyone = libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_ALL, 0)
    keys = {
        libkvm.KERN_PROC_PID: lambda process: process.pid,
        libkvm.KERN_PROC_PGRP: lambda process: process.pgid,
        libkvm.KERN_PROC_SESSION: lambda process: process.sid,
        libkvm.KERN_PROC_TTY: lambda process: -1 if process.tty is None else process.tty,
        libkvm.KERN_PROC_UID: lambda process: process.euid,
        libkvm.KERN_PROC_RUID: lambda process: process.uid,
        libkvm.KERN_PROC_GID: lambda process: process.egid,
        libkvm.KERN_PROC_RGID: lambda process: process.gid,
    }
    for op, key in keys.items():
        for value in sorted(set(map(key, everyone)))[:3]:
            wanted = [process for process in everyone if key(process) == value]
            assert libkvm.kvm_getproc2(kd, op, value) == wanted == libkvm.kvm_getprocs(kd, op, value)
    kernel_threads = [process for process in everyone if process.kernel_thread]
    assert libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_KTHREAD) == kernel_threads
    assert libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_TTY, libkvm.KERN_PROC_TTY_REVOKE) == []
    assert libkvm.kvm_getproc2(kd, 99, 0) is None
    assert ctypes.get_errno() == errno.EINVAL


def test_a32_nchr(kd, dump):
    plain = dump.named("bed-plain")
    whole = dump.processes[plain]["argv"]
    [process] = libkvm.kvm_getproc2(kd, libkvm.KERN_PROC_PID, plain)

    for call in (libkvm.kvm_getargv2, libkvm.kvm_getargv):
        assert call(kd, process, 0) == call(kd, process, libkvm.ARG_MAX) == whole
        assert call(kd, process, 1) == [""]
        assert call(kd, process, len(whole[0]) + 3) == [whole[0], whole[1][:1]]
        for each in dump.processes.values():
            if each["kthread"] or each["state"] == "Z":
                assert call(kd, each["pid"], 0) is None
                assert kvm_geterr(kd) != ""
                break
    assert libkvm.kvm_getargv2(kd, process, libkvm.ARG_MAX + 1) is None


def test_a33_two_threads_on_one_handle(one):
    kd = kvm_open(None, one.path, None, os.O_RDONLY, None)
    wrong = []
    places = {name: one.symbol(name) for name in ("linux_banner", "__start_rodata")}
    first = {name: bytearray(512) for name in places}
    for name, address in places.items():
        assert kvm_read(kd, address, first[name]) == 512

    def work(name: str) -> None:
        for turn in range(100):
            buf = bytearray(512)
            if kvm_read(kd, places[name], buf) != 512 or buf != first[name]:
                wrong.append((name, turn))
            if kvm_read(kd, NOWHERE, buf) != -1 or kvm_geterr(kd) != f"_kvm_kvatop({NOWHERE:x})":
                wrong.append((name, kvm_geterr(kd)))

    threads = [threading.Thread(target=work, args=(name,)) for name in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert kvm_close(kd) == 0
