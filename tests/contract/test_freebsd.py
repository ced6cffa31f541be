"""The 13 cases of FreeBSD's lib/libkvm/tests, by name.

Those that need root there, for the live kernel, run on a dump; with KVMD_TEST_LIVE=1 they run on the live kernel (see
conftest). ``_mp_maxcpus`` is Linux's ``nr_cpu_ids``.
"""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from libkvm import (
    ErrBuf,
    Nlist,
    kvm_close,
    kvm_geterr,
    kvm_getmaxcpu,
    kvm_nlist,
    kvm_open,
    kvm_open2,
    kvm_read,
    kvm_write,
)

TRANSPORTS = ["grpc", "fast"]
PROGRAMS = pytest.mark.parametrize("errstr", [None, "kvm_open_test"])


def test_kvm_close_negative_test_NULL():  # noqa: N802
    ctypes.set_errno(0)

    assert kvm_close(None) == -1
    assert ctypes.get_errno() == errno.EINVAL


def test_kvm_geterr_negative_test_NULL():  # noqa: N802
    assert kvm_geterr(None) == ""


def test_kvm_geterr_positive_test_error(corefile):
    errbuf = ErrBuf()
    kd = kvm_open2(None, corefile, os.O_RDONLY, errbuf, None)

    assert str(errbuf) == ""
    assert kd is not None
    assert kvm_write(kd, 0, None, 0) == -1
    assert kvm_geterr(kd) != ""
    assert kvm_close(kd) == 0


def test_kvm_geterr_positive_test_no_error(corefile):
    errbuf, value = ErrBuf(), bytearray(4)
    kd = kvm_open2(None, corefile, os.O_RDONLY, errbuf, None)
    nl = [Nlist("nr_cpu_ids"), Nlist()]

    assert str(errbuf) == ""
    assert kvm_nlist(kd, nl) != -1
    assert nl[0].n_type != 0
    kd.soft("that ends well", 0)
    assert kvm_read(kd, nl[0].n_value, value, 4) != -1
    assert kvm_geterr(kd) == "that ends well"
    assert kvm_close(kd) == 0


@PROGRAMS
def test_kvm_open_negative_test_nonexistent_corefile(errstr):
    assert kvm_open(None, "/nonexistent", None, os.O_RDONLY, errstr) is None


@PROGRAMS
def test_kvm_open_negative_test_nonexistent_execfile(errstr):
    assert kvm_open("/nonexistent", "/dev/zero", None, os.O_RDONLY, errstr) is None


@PROGRAMS
def test_kvm_open_negative_test_invalid_corefile(odd, errstr):
    assert kvm_open(None, odd / "some-file", None, os.O_RDONLY, errstr) is None


@PROGRAMS
def test_kvm_open_negative_test_invalid_execfile(odd, errstr):
    assert kvm_open(odd / "some-file", "/bin/sh", None, os.O_RDONLY, errstr) is None


def refused(execfile: object, corefile: object) -> None:
    errbuf = ErrBuf()

    assert kvm_open2(execfile, corefile, os.O_RDONLY, None, None) is None
    assert str(errbuf) == ""
    assert kvm_open2(execfile, corefile, os.O_RDONLY, errbuf, None) is None
    assert str(errbuf) != ""


def test_kvm_open2_negative_test_nonexistent_corefile():
    refused(None, "/nonexistent")


def test_kvm_open2_negative_test_nonexistent_execfile():
    refused("/nonexistent", "/dev/zero")


def test_kvm_open2_negative_test_invalid_corefile(odd):
    refused(None, odd / "some-file")


def test_kvm_open2_negative_test_invalid_execfile(odd):
    refused(odd / "some-file", "/bin/sh")


def test_kvm_read_positive_test_no_error(corefile, capsys):
    value = ctypes.c_int()
    kd = kvm_open(None, corefile, None, os.O_RDONLY, "")
    nl = [Nlist("nr_cpu_ids"), Nlist()]

    assert kd is not None
    assert kvm_nlist(kd, nl) != -1
    assert nl[0].n_type != 0
    assert kvm_read(kd, nl[0].n_value, value, ctypes.sizeof(value)) != -1
    assert value.value == kvm_getmaxcpu(kd)
    assert kvm_close(kd) == 0
    assert capsys.readouterr().err == ""
