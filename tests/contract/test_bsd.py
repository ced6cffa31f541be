"""A17 to A27 of the acceptance list derived from libkvm's sources, by number, on dumps of BSD kernels."""

from __future__ import annotations

import ctypes
import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import bsd
import libkvm
from bsd import PAGE, TEXT_BASE, pattern
from bsd_minidump import M_BASE, M_DATA, M_GONE, M_LARGE
from libkvm import (
    ErrBuf,
    Nlist,
    Reason,
    kvm_close,
    kvm_dump_inval,
    kvm_dump_mkheader,
    kvm_dump_wrtheader,
    kvm_geterr,
    kvm_nlist,
    kvm_nlist2,
    kvm_open,
    kvm_open2,
    kvm_openfiles,
    kvm_read,
)
from libkvm.compat.kd import Kvm

TRANSPORTS = ["grpc", "fast"]
Open = Callable[..., Kvm]
BROKEN = ("another machine", "one segment", "DATA before CPU", "cut at 24", "a huge c_size")
"""Of K7; the rest of it is for the unit tests."""
DIRECT = 0xFFFFF80000000000


@pytest.fixture
def opened(dumps: Path) -> Iterator[Open]:
    """Opens a dump by its name."""
    with ExitStack() as stack:

        def open_dump(name: str, execfile: str | None = None) -> Kvm:
            errbuf = ErrBuf()
            kd = kvm_openfiles(execfile and dumps / execfile, dumps / name, None, os.O_RDONLY, errbuf)
            assert kd is not None, str(errbuf)
            stack.callback(kvm_close, kd)
            return kd

        yield open_dump


def got(kd: Kvm, address: int, length: int) -> bytes | int:
    """What a read gives: all its bytes, or what it answers otherwise."""
    buf = bytearray(length)
    count = kvm_read(kd, address, buf)
    return bytes(buf) if count == length else count


def refused(execfile: Path | None, corefile: Path) -> str:
    errbuf = ErrBuf()
    assert kvm_openfiles(execfile, corefile, None, os.O_RDONLY, errbuf) is None
    return str(errbuf)


def test_a17_a_stripped_execfile(opened, dumps):
    kd = opened("k1", "netbsd-stripped")
    nl = [Nlist("version", n_type=9, n_value=9)]

    assert kvm_nlist(kd, nl) == -1
    assert kvm_geterr(kd) == "bad namelist"
    assert nl == [Nlist("version")]
    assert got(kd, TEXT_BASE, 8) == pattern(5)[:8]
    kd = opened("k1")
    assert kvm_nlist(kd, nl) == -1
    assert kvm_geterr(kd) == "bad namelist"


def test_a17_names_of_an_execfile(opened, dumps):
    kd = opened("k1", "netbsd")
    nl = [Nlist("_dumpmag"), Nlist("version"), Nlist("absent")]

    assert kvm_nlist(kd, nl) == 1
    assert [(entry.n_type, entry.n_value) for entry in nl] == [(7, TEXT_BASE), (7, TEXT_BASE + 8), (0, 0)]
    assert libkvm.kvm_getkernelname(kd) == str(dumps / "netbsd")
    assert libkvm.kvm_native(kd) == 1


def test_a18_reads_within_a_page_across_pages_and_off_the_map(opened):
    for name, base in (("k1", TEXT_BASE), ("k4", TEXT_BASE), ("k5", bsd.ARM_TEXT)):
        kd = opened(name)
        assert got(kd, base + 8, 64) == pattern(5)[8:72]
    kd = opened("k1")
    assert got(kd, TEXT_BASE + 16, 2 * PAGE - 32) == (pattern(5) + pattern(6))[16:-16]
    assert kvm_geterr(kd) == ""
    for unmapped in (0x10, TEXT_BASE + 2 * PAGE, (1 << 64) - PAGE):
        assert got(kd, unmapped, 8) == -1
        assert kvm_geterr(kd) == f"_kvm_kvatop({unmapped:x})"
    buf = bytearray(2 * PAGE)
    assert kvm_read(kd, TEXT_BASE + PAGE, buf) == -1  # its first page is mapped, its second isn't
    assert kvm_geterr(kd) == f"_kvm_kvatop({TEXT_BASE + 2 * PAGE:x})"
    assert buf[:PAGE] == pattern(6)


def test_a18_what_the_translation_says_is_soft(dumps, capsys):
    kd = kvm_open(None, dumps / "k1", None, os.O_RDONLY, "prog")

    assert got(kd, TEXT_BASE + 2 * PAGE, 8) == -1
    assert capsys.readouterr().err == f"prog: _kvm_kvatop({TEXT_BASE + 2 * PAGE:x})\n"
    assert kvm_geterr(kd) == "invalid translation (invalid PTE)"
    assert kvm_close(kd) == 0


def test_a19_reads_inside_a_large_page(opened):
    kd = opened("k2")

    assert got(kd, bsd.LARGE_VIRTUAL + 8, 3 * PAGE - 16) == (pattern(100) + pattern(101) + pattern(102))[8:-8]
    assert got(kd, bsd.HUGE_VIRTUAL + bsd.LARGE + PAGE, 2 * PAGE) == pattern(101) + pattern(102)
    assert got(kd, bsd.LARGE_VIRTUAL + bsd.LARGE - PAGE, PAGE) == pattern(611)
    sizes: list[int] = []
    assert libkvm.kvm_walk_pages(kd, lambda page, found: found.append(page.length) or 1, sizes) == 1
    assert sizes == [1 << 30, 2 << 20]


def test_a20_a_hole_is_no_neighbours_data(opened, client, dumps):
    kd = opened("k3")

    assert got(kd, bsd.LARGE_VIRTUAL + 0x7000, PAGE) == pattern(0x7000)
    assert got(kd, bsd.LARGE_VIRTUAL + 0x7000, 2 * PAGE) == -1
    assert kvm_geterr(kd) == f"_kvm_kvatop({bsd.LARGE_VIRTUAL + bsd.HOLE:x})"
    assert got(kd, TEXT_BASE, 8) == -1
    assert got(kd, bsd.LARGE_VIRTUAL + bsd.AFTER_HOLE, PAGE) == pattern(bsd.AFTER_HOLE)
    with client.open(dumps / "k3") as kernel, pytest.raises(libkvm.FaultError) as caught:
        kernel.read(TEXT_BASE, 8)
    assert (caught.value.reason, caught.value.address) == (Reason.BEYOND_DUMP, TEXT_BASE)


@pytest.mark.parametrize("name", BROKEN)
def test_a21_a_broken_header(opened, dumps, name):
    """NetBSD's way where the execfile is a NetBSD kernel, FreeBSD's otherwise."""
    kd = opened(name, "netbsd")

    assert got(kd, TEXT_BASE, 8) == -1
    assert kvm_geterr(kd) == "no valid dump header"
    assert kvm_nlist(kd, [Nlist("version")]) == 0
    assert kvm_dump_wrtheader(kd, io.BytesIO(), 0) == -1
    assert kvm_geterr(kd) == "no valid dump header(s)"
    assert refused(None, dumps / name) not in {"", "no valid dump header"}


def test_a22_reading_nothing(opened):
    for name in ("k1", "m3"):
        kd = opened(name)
        assert kvm_read(kd, 0x10, bytearray()) == 0
        assert kvm_geterr(kd) == ""


def test_a23_a_dump_on_its_device(opened, dumps, bare):
    kd, other = opened("k6", "netbsd"), opened("k6", "netbsd")

    assert got(kd, TEXT_BASE, 8) == -1
    assert kvm_geterr(kd) == "no valid dump header"
    assert kvm_dump_mkheader(kd, 0) == 0
    assert kvm_geterr(kd) == "invalid magic in cpu_hdr"
    assert kvm_dump_mkheader(kd, 1 << 40) == -1
    assert kvm_geterr(kd) == f"read 8 bytes at offset {1 << 40:x} for cpu_hdr failed: Invalid argument"
    assert kvm_dump_mkheader(kd, -1) == -1
    assert kvm_dump_mkheader(kd, 8192) == 512
    assert got(kd, TEXT_BASE, PAGE) == pattern(5)
    assert kvm_nlist(kd, [Nlist("version")]) == 0
    assert kvm_dump_mkheader(kd, 8192) == -1
    assert kvm_geterr(kd) == "already has a dump header"
    assert got(other, TEXT_BASE, 8) == -1  # each handle has its own
    assert kvm_geterr(other) == "no valid dump header"
    assert kvm_dump_mkheader(bare, 0) == -1
    assert kvm_geterr(bare) == "don't use on live kernel"
    for name in ("k1", "m3"):
        kd = opened(name)
        assert kvm_dump_mkheader(kd, 0) == -1
        assert kvm_geterr(kd) == "already has a dump header"


def test_a23_which_errors_are_hard(dumps, capsys):
    kd = kvm_open(dumps / "netbsd", dumps / "k6", None, os.O_RDONLY, "prog")

    assert kvm_dump_mkheader(kd, 0) == 0
    assert kvm_geterr(kd) == "invalid magic in cpu_hdr"
    assert capsys.readouterr().err == ""
    assert kvm_dump_mkheader(kd, 8192) == 512
    assert kvm_dump_mkheader(kd, 8192) == -1
    assert capsys.readouterr().err == "prog: already has a dump header\n"
    assert kvm_close(kd) == 0


def test_a24_the_header_of_a_file(opened, dumps, client):
    kd, out = opened("k6", "netbsd"), io.BytesIO()
    memory = (dumps / "k1").read_bytes()[536:]

    assert kvm_dump_mkheader(kd, 8192) == 512
    assert kvm_dump_wrtheader(kd, out, len(memory)) == 536
    (dumps / "made").write_bytes(out.getvalue() + memory)
    assert (dumps / "made").read_bytes() == (dumps / "k1").read_bytes()
    assert got(opened("made"), TEXT_BASE, PAGE) == pattern(5)
    again = io.BytesIO()
    assert kvm_dump_wrtheader(opened("k4"), again, 1 << 32) == 1048
    assert again.getvalue()[-4:] == bytes(4)  # Q25: there is room for 32 bits
    assert kvm_dump_wrtheader(opened("k5"), io.BytesIO(), 0) == 544
    with client.open(dumps / "k6", dump_offset=8192) as kernel:
        assert kernel.dump_header(len(memory)).header == out.getvalue()
        assert kernel.read(TEXT_BASE, 8) == pattern(5)[:8]
    with (dumps / "made").open("rb") as unwritable:
        assert kvm_dump_wrtheader(kd, unwritable, 0) == -1
    assert kvm_geterr(kd) == "kvm_dump_header: Input/output error"
    assert kvm_dump_wrtheader(kd, out, -1) == -1
    for name in ("m3", "e1"):
        kd = opened(name, "freebsd")
        assert kvm_dump_wrtheader(kd, out, 0) == -1
        assert kvm_geterr(kd) == "no valid dump header(s)"


def test_a24_a_dump_is_not_invalidated(opened, bare):
    for execfile, text in {
        "netbsd": "cannot invalidate dump - pwrite: Read-only file system",
        "netbsd-stripped": "bad namelist",
        None: "bad namelist",
    }.items():
        kd = opened("k1", execfile)
        assert kvm_dump_inval(kd) == -1
        assert kvm_geterr(kd) == text
    assert kvm_dump_inval(bare) == -1
    assert kvm_geterr(bare) == "clearing dump on live kernel"


def test_a25_magic_and_version(opened, dumps):
    for version in (1, 2, 3):
        assert got(opened(f"m{version}"), M_BASE, 8) == pattern(5)[:8]
    for version in (0, 4):
        assert refused(None, dumps / f"version{version}") == f"wrong minidump version. expected 3 got {version}"


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a26_lookups(dumps, version, capsys):
    prefix = "_amd64_minidump_vatop_v1: " if version == 1 else "_amd64_minidump_vatop: "
    quiet = kvm_openfiles(None, dumps / f"m{version}", None, os.O_RDONLY, None)
    loud = kvm_open(None, dumps / f"m{version}", None, os.O_RDONLY, "prog")

    for kd in (quiet, loud):
        assert got(kd, M_BASE, PAGE) == pattern(5)
        assert got(kd, M_BASE + bsd.LARGE, PAGE) == pattern(6)
        assert got(kd, DIRECT + M_DATA + 8, 8) == pattern(5)[8:16]
        assert got(kd, DIRECT + M_LARGE, 2 * PAGE) == pattern(6) + pattern(7)
        assert kvm_geterr(kd) == ""
    texts = {
        M_BASE + PAGE: f"physical address {M_GONE:#x} not in minidump",
        M_BASE + 2 * PAGE: "pte not valid",
        DIRECT + M_GONE: f"direct map address {DIRECT + M_GONE:#x} not in minidump",
        0x1000: "virtual address 0x1000 not minidumped",
    }
    for address, text in texts.items():
        assert got(quiet, address, 8) == got(loud, address, 8) == -1
        assert kvm_geterr(quiet) == kvm_geterr(loud) == f"invalid address ({address:#x})"
        assert capsys.readouterr().err == f"prog: {prefix}{text}\n"
    assert kvm_close(quiet) == kvm_close(loud) == 0


def test_a26_a_clear_bit_has_its_reason(client, dumps):
    with client.open(dumps / "m3") as kernel:
        for address, physical in ((M_BASE + PAGE, False), (DIRECT + M_GONE, False), (M_GONE, True)):
            with pytest.raises(libkvm.FaultError) as caught:
                kernel.read(address, 8, physical=physical)
            assert (caught.value.reason, caught.value.address) == (Reason.EXCLUDED, address)


def test_a26_a_full_dump(opened, dumps, capsys):
    kd = opened("e1", "freebsd")

    assert got(kd, TEXT_BASE, 2 * PAGE) == pattern(5) + pattern(6)
    assert got(kd, TEXT_BASE + 2 * PAGE, 8) == -1
    assert kvm_geterr(kd) == f"invalid address ({TEXT_BASE + 2 * PAGE:#x})"
    assert refused(None, dumps / "e1") == "bad namelist - no kernbase"


def foreign() -> tuple[str, str]:
    return ("m4", "freebsd-arm64") if os.uname().machine == "x86_64" else ("m3", "freebsd")


def test_a27_a_foreign_kernel_needs_a_resolver(dumps, capsys):
    core, execfile = foreign()
    text = "non-native kernel requires a symbol resolver"
    errbuf = ErrBuf()

    assert kvm_open2(dumps / execfile, dumps / core, os.O_RDONLY, errbuf, None) is None
    assert str(errbuf) == text
    assert refused(dumps / execfile, dumps / core) == text
    assert kvm_open(dumps / execfile, dumps / core, None, os.O_RDONLY, "prog") is None
    assert capsys.readouterr().err == f"prog: {text}\n"


def test_a27_a_foreign_kernels_symbols(dumps):
    core, execfile = foreign()
    asked: list[str] = []

    def resolver(name: str) -> int | None:
        asked.append(name)
        return {"here": 0xFFFF000000000000}.get(name)

    kd = kvm_open2(dumps / execfile, dumps / core, os.O_RDONLY, None, resolver)
    nl = [Nlist("here"), Nlist("a"), Nlist(None), Nlist("never")]
    assert libkvm.kvm_native(kd) == 0
    assert kvm_nlist2(kd, nl) == 1
    assert asked == ["here", "a"]
    assert [(entry.n_type, entry.n_value) for entry in nl[:2]] == [(7, 0xFFFF000000000000), (0, 0)]
    ctypes.set_errno(0)
    assert kvm_nlist(kd, nl) == -1
    assert kvm_geterr(kd) == "kvm_nlist of non-native vmcore"
    assert ctypes.get_errno() == errno.EINVAL
    assert nl[0].n_value == 0
    for call, text in {
        lambda: libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_ALL): "cannot read procs from non-native core",
        lambda: libkvm.kvm_getloadavg(kd): "cannot read loadavg from non-native core",
        lambda: libkvm.kvm_getcptime(kd): "cannot read cp_time from non-native core",
        lambda: libkvm.kvm_getargv(kd, 1): "cannot read user space from dead kernel",
    }.items():
        assert call() is None
        assert kvm_geterr(kd) == text
    assert kvm_close(kd) == 0


def test_a27_a_native_kernels_symbols_are_its_own(dumps, one):
    """The resolver is asked only where an image has none."""
    asked: list[str] = []
    cases = ((dumps / "netbsd", dumps / "k1", "version"), (None, one.path, "jiffies"))
    for execfile, corefile, name in cases:
        kd = kvm_open2(execfile, corefile, os.O_RDONLY, None, asked.append)
        assert libkvm.kvm_native(kd) == 1
        assert kvm_nlist2(kd, [Nlist(name)]) == 0
        assert kvm_close(kd) == 0
    assert asked == []
    kd = kvm_open2(None, dumps / "m3", os.O_RDONLY, None, {"start": M_BASE}.get)
    nl = [Nlist("start"), Nlist("stop")]
    assert kvm_nlist2(kd, nl) == kvm_nlist(kd, nl) == 1
    assert nl[0].n_value == M_BASE
    assert got(kd, nl[0].n_value, 8) == pattern(5)[:8]
    assert kvm_close(kd) == 0


def test_the_python_face_reads_foreign_dumps_without_a_resolver(client, dumps):
    with client.open(dumps / "m4", dumps / "freebsd-arm64") as kernel:
        assert kernel.info.format == "freebsd-minidump"
        assert kernel.symbol("a").value == 1
        assert kernel.read(0xFFFF000000000000, 8) == pattern(5)[:8]
        with pytest.raises(libkvm.UnsupportedError):
            kernel.processes()
