"""The C-style face: return values, texts and where they go."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
import textwrap

import pytest

from kvmd.errors import Reason, error
from libkvm import (
    ErrBuf,
    Nlist,
    kvm_close,
    kvm_geterr,
    kvm_getkernelname,
    kvm_nlist,
    kvm_open,
    kvm_open2,
    kvm_openfiles,
    kvm_read,
)
from libkvm.compat import connection
from unit.client.fake import BASE, MEMORY, Fake, serving

END = BASE + len(MEMORY)
KVATOP = f"_kvm_kvatop({END:x})"


class TestOpen:
    def test_kvm_open_uses_open_and_kvm_openfiles_uses_openfiles(self, kd, loud, fake):
        assert [name for name, _ in fake.seen] == ["OpenFiles", "Open"]
        assert kvm_geterr(kd) == kvm_geterr(loud) == ""
        assert kvm_getkernelname(kd) == "vmlinux-fake"
        assert repr(kd) == "<libkvm.Kvm of /dumps/vmcore, read-only>"

    def test_the_arguments_arrive(self, target, fake):
        kd = kvm_openfiles("exec", "core", "swap:more", os.O_RDWR, None)
        request = fake.seen[0][1].open

        assert (request.execfile, request.corefile, list(request.swapfiles)) == ("exec", "core", ["swap", "more"])
        assert request.flags == os.O_RDWR
        assert kvm_close(kd) == 0

    def test_kvm_open_failure_is_on_stderr(self, target, capsys):
        assert kvm_open(None, "/nonexistent", None, os.O_RDONLY, "prog") is None
        assert capsys.readouterr().err == "prog: /nonexistent: No such file or directory\n"
        assert ctypes.get_errno() == errno.ENOENT

    def test_kvm_open_without_errstr_is_silent(self, target, capsys):
        assert kvm_open(None, "/nonexistent", None, os.O_RDONLY, None) is None
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_CREAT | os.O_WRONLY])
    def test_bad_flags(self, target, flags):
        errbuf = ErrBuf()

        assert kvm_openfiles(None, None, None, flags, errbuf) is None
        assert str(errbuf) == "bad flags arg"

    def test_kvm_openfiles_failure_is_in_errbuf(self, target, capsys):
        errbuf = bytearray(b"x" * 2048)

        assert kvm_openfiles(None, "/nonexistent", None, os.O_RDONLY, errbuf) is None
        assert errbuf.startswith(b"/nonexistent: No such file or directory\0xxx")
        assert len(errbuf) == 2048
        assert capsys.readouterr().err == ""

    def test_errbuf_is_cut_at_2047_bytes(self, target):
        errbuf = ErrBuf()

        assert kvm_openfiles(None, "/" + "x" * 3000 + "nonexistent", None, os.O_RDONLY, errbuf) is None
        assert len(errbuf) == 2048
        assert errbuf[2047] == 0
        assert str(errbuf) == "/" + "x" * 2046

    def test_an_errbuf_may_be_small_or_none(self, target):
        small, none = bytearray(5), bytearray()

        for errbuf in (small, none, None):
            assert kvm_openfiles(None, "/nonexistent", None, os.O_RDONLY, errbuf) is None
        assert small == b"/non\0"
        assert none == b""

    def test_success_leaves_errbuf_alone(self, target):
        errbuf = ErrBuf()
        kd = kvm_openfiles(None, None, None, os.O_RDONLY, errbuf)

        assert str(errbuf) == ""
        assert kvm_close(kd) == 0

    def test_kvm_open2(self, target, capsys):
        errbuf = ErrBuf()
        kd = kvm_open2(None, None, os.O_RDONLY, errbuf, None)

        assert kvm_close(kd) == 0
        assert kvm_open2(None, "/nonexistent", os.O_RDONLY, None, lambda name: None) is None
        assert kvm_open2(None, "/nonexistent", os.O_RDONLY, errbuf, None) is None
        assert str(errbuf) == "/nonexistent: No such file or directory"
        with pytest.raises(TypeError):
            kvm_open2(None, None, os.O_RDONLY, None, "resolver")

    def test_no_daemon_is_an_error_like_others(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("KVMD_TARGET", f"unix:{tmp_path}/none")
        errbuf = ErrBuf()

        assert kvm_openfiles(None, None, None, os.O_RDONLY, errbuf) is None
        assert str(errbuf).startswith(f"no kvmd answers on unix:{tmp_path}/none")
        assert ctypes.get_errno() == errno.ECONNREFUSED
        assert kvm_open(None, None, None, os.O_RDONLY, "prog") is None
        assert capsys.readouterr().err.startswith("prog: no kvmd answers")
        connection._close_all()

    def test_a_bad_target_is_an_error_like_others(self, monkeypatch):
        monkeypatch.setenv("KVMD_TARGET", "nonsense")
        errbuf = ErrBuf()

        assert kvm_openfiles(None, None, None, os.O_RDONLY, errbuf) is None
        assert "nonsense" in str(errbuf)


class TestClose:
    def test_none(self):
        ctypes.set_errno(0)

        assert kvm_close(None) == -1
        assert ctypes.get_errno() == errno.EINVAL

    def test_twice(self, kd):
        assert kvm_close(kd) == 0
        assert kvm_close(kd) == -1
        assert ctypes.get_errno() == errno.EBADF
        assert kvm_geterr(kd) == "Bad file descriptor"

    def test_failure(self, target, fake):
        kd = kvm_openfiles(None, None, None, os.O_RDONLY, None)
        fake.fail["Close"] = error(Reason.INTERNAL, "incident 7")

        assert kvm_close(kd) == -1
        assert kvm_geterr(kd) == "incident 7"


def test_geterr_and_getkernelname_of_none():
    assert kvm_geterr(None) == kvm_getkernelname(None) == ""


class TestNlist:
    def test_all_found(self, kd):
        nl = [Nlist("_stext"), Nlist("jiffies"), Nlist("")]

        assert kvm_nlist(kd, nl) == 0
        assert [(entry.n_value, entry.n_type) for entry in nl[:2]] == [(BASE, 5), (BASE + 0x1000, 7)]

    @pytest.mark.parametrize("end", ["", None])
    def test_one_missing_is_counted_and_zeroed(self, kd, end):
        nl = [Nlist("nope", 9, 9, 9, 9), Nlist("jiffies", 9, 9, 9, 9), Nlist(end), Nlist("after", n_value=9)]

        assert kvm_nlist(kd, nl) == 1
        assert nl[0] == Nlist("nope")
        assert nl[1] == Nlist("jiffies", 7, 0, 0, BASE + 0x1000)
        assert nl[3].n_value == 9

    def test_one_leading_underscore_may_be_too_many(self, kd):
        nl = [Nlist("_jiffies"), Nlist("__stext"), Nlist("__jiffies"), Nlist("_under")]

        assert kvm_nlist(kd, nl) == 1
        assert [entry.n_value for entry in nl] == [BASE + 0x1000, BASE, 0, BASE + 8]

    def test_duplicates_are_each_filled(self, kd):
        nl = [Nlist("jiffies"), Nlist("jiffies")]

        assert kvm_nlist(kd, nl) == 0
        assert nl[0] == nl[1]

    def test_an_empty_list(self, kd):
        assert kvm_nlist(kd, []) == kvm_nlist(kd, [Nlist()]) == 0

    def test_failure_is_soft(self, loud, fake, capsys):
        fake.fail["Nlist"] = error(Reason.NO_SYMBOLS, "none")
        nl = [Nlist("jiffies", n_value=9)]

        assert kvm_nlist(loud, nl) == -1
        assert kvm_geterr(loud) == "bad namelist"
        assert nl[0].n_value == 0
        assert capsys.readouterr().err == ""

    def test_a_name_is_text(self, kd):
        with pytest.raises(TypeError):
            kvm_nlist(kd, [Nlist(b"jiffies")])

    def test_none_and_closed(self, kd):
        kvm_close(kd)

        assert kvm_nlist(None, []) == kvm_nlist(kd, [Nlist("jiffies")]) == -1


class TestConnection:
    def test_handles_share_a_connection(self, kd, loud):
        assert kd.kernel._shared is loud.kernel._shared

    def test_a_daemon_that_came_back_is_found(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KVMD_TARGET", f"unix:{tmp_path}/s")
        with serving(str(tmp_path / "s"), Fake()):
            old = kvm_openfiles(None, None, None, os.O_RDONLY, None)
        assert kvm_read(old, BASE, bytearray(1)) == -1
        assert kvm_openfiles(None, None, None, os.O_RDONLY, None) is None
        with serving(str(tmp_path / "s"), Fake()):
            new = kvm_openfiles(None, None, None, os.O_RDONLY, None)
            assert kvm_read(new, BASE, bytearray(1)) == 1
            assert kvm_close(new) == 0
            connection._close_all()

    def test_a_forked_child_connects_anew_and_can_not_use_its_parents_handles(self, tmp_path):
        # In a process of its own: pytest's has threads, and grpc's server, that must not be forked.
        code = textwrap.dedent("""
            import os, sys, libkvm
            kd = libkvm.kvm_openfiles(None, "core", None, 0, None)
            child = os.fork()
            if not child:
                assert libkvm.kvm_read(kd, 0xffffffff81000000, bytearray(1)) == -1
                assert libkvm.kvm_geterr(kd) == "Bad file descriptor"
                mine = libkvm.kvm_openfiles(None, "core", None, 0, None)
                assert libkvm.kvm_read(mine, 0xffffffff81000000, bytearray(1)) == 1
                assert libkvm.kvm_close(mine) == 0
                sys.exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert libkvm.kvm_read(kd, 0xffffffff81000000, bytearray(1)) == 1
            sys.exit(libkvm.kvm_close(kd))
        """)
        with serving(str(tmp_path / "s"), Fake()) as target:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", code],
                check=False, env={**os.environ, "KVMD_TARGET": target}, capture_output=True, text=True, timeout=60,
            )  # fmt: skip

        assert (done.returncode, done.stderr) == (0, "")
