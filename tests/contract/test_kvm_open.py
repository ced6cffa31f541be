"""kvm_open(3), kvm_openfiles(3), kvm_open2(3), kvm_close(3), kvm_geterr(3), kvm_getkernelname(3)."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from libkvm import (
    ErrBuf,
    kvm_close,
    kvm_geterr,
    kvm_getkernelname,
    kvm_open,
    kvm_open2,
    kvm_openfiles,
)


def test_every_dump_opens_and_closes_by_each_call(dump):
    errbuf = ErrBuf()
    handles = [
        kvm_open(None, dump.path, None, os.O_RDONLY, None),
        kvm_openfiles(None, dump.path, None, os.O_RDONLY, errbuf),
        kvm_open2(None, dump.path, os.O_RDONLY, errbuf, None),
    ]

    assert str(errbuf) == ""
    assert None not in handles
    assert [kvm_geterr(kd) for kd in handles] == ["", "", ""]
    assert [kvm_close(kd) for kd in handles] == [0, 0, 0]


@pytest.mark.parametrize("errstr", [None, "prog"])
def test_kvm_open_of_a_nonexistent_corefile(errstr, capsys):
    assert kvm_open(None, "/nonexistent", None, os.O_RDONLY, errstr) is None
    assert capsys.readouterr().err.startswith("prog: /nonexistent: " if errstr else "")


def test_kvm_openfiles_of_a_nonexistent_dump(one):
    errbuf = ErrBuf()
    name = os.path.join(os.path.dirname(one.path), "nonexistent")

    assert kvm_openfiles(None, name, None, os.O_RDONLY, errbuf) is None
    assert str(errbuf) == f"{name}: No such file or directory"
    assert ctypes.get_errno() == errno.ENOENT
    assert kvm_openfiles(None, name, None, os.O_RDONLY, None) is None


def test_kvm_open_of_a_nonexistent_execfile(one, capsys):
    name = os.path.join(os.path.dirname(one.path), "nonexistent")

    assert kvm_open(name, one.path, None, os.O_RDONLY, "prog") is None
    assert capsys.readouterr().err == f"prog: {name}: No such file or directory\n"


def test_kvm_openfiles_of_what_is_no_dump(odd):
    errbuf = ErrBuf()

    assert kvm_openfiles(None, odd / "some-file", None, os.O_RDONLY, errbuf) is None
    assert str(errbuf) != ""


def test_kvm_open_of_an_empty_file(odd, capsys):
    assert kvm_open(None, odd / "empty", None, os.O_RDONLY, "prog") is None
    assert capsys.readouterr().err == "prog: empty file: Invalid argument\n"


def test_kvm_open_of_an_execfile_that_is_none(one, odd):
    errbuf = ErrBuf()

    assert kvm_openfiles(odd / "some-file", one.path, None, os.O_RDONLY, errbuf) is None
    assert str(errbuf) == "kernel is not an ELF file"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_CREAT])
def test_bad_flags(one, flags):
    errbuf = ErrBuf()

    assert kvm_openfiles(None, one.path, None, flags, errbuf) is None
    assert str(errbuf) == "bad flags arg"


@pytest.mark.parametrize(("length", "text"), [(1023, "File name too long"), (1024, "exec file name too long")])
def test_the_length_of_an_execfiles_name(one, length, text):
    errbuf = ErrBuf()

    assert kvm_openfiles("/" + "x" * (length - 1), one.path, None, os.O_RDONLY, errbuf) is None
    if length == 1024:
        assert str(errbuf) == text
    else:
        assert str(errbuf) not in {"", "exec file name too long"}


def test_closing_twice_and_none(one):
    kd = kvm_openfiles(None, one.path, None, os.O_RDONLY, None)

    assert kvm_close(kd) == 0
    assert kvm_close(kd) == -1
    assert ctypes.get_errno() == errno.EBADF
    assert kvm_close(None) == -1
    assert ctypes.get_errno() == errno.EINVAL
    assert kvm_geterr(None) == ""


def test_the_kernels_name_is_that_of_the_namelist(kd):
    assert kvm_getkernelname(kd)
    assert kvm_getkernelname(None) == ""


def test_handles_of_one_dump_close_one_by_one(one):
    first = kvm_openfiles(None, one.path, None, os.O_RDONLY, None)
    second = kvm_openfiles(None, one.path, None, os.O_RDONLY, None)

    assert kvm_close(first) == 0
    assert kvm_getkernelname(second)
    assert kvm_close(second) == 0
