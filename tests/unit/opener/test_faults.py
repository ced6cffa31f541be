"""Failures of the operating system: a typed answer, and no descriptor left."""

from __future__ import annotations

import errno
import os

import pytest

from kvmd import opener as module
from kvmd import syscalls
from kvmd.errors import KvmError, Reason

DUMP = b"a dump"


@pytest.mark.parametrize("call", ["open", "fstat"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EMFILE, Reason.SOURCE_IO),
        (errno.ENFILE, Reason.SOURCE_IO),
        (errno.EIO, Reason.SOURCE_IO),
        (errno.EINTR, Reason.SOURCE_IO),
        (errno.ESTALE, Reason.SOURCE_IO),
        (errno.EWOULDBLOCK, Reason.SOURCE_IO),
        (errno.EACCES, Reason.SOURCE_ACCESS),
        (errno.ENOENT, Reason.SOURCE_NOT_FOUND),
    ],
)
def test_the_nth_call_fails(way, opener, monkeypatch, call, code, expected):  # noqa: PLR0917 - fixtures
    """For every N: a typed answer with the errno, and no descriptor left (the fixture looks)."""
    real = getattr(os, call)
    failed_at = 0
    for nth in range(1, 20):
        count = 0

        def failing(*args, nth=nth, **kwargs):
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(f"kvmd.opener.os.{call}", failing)
            try:
                opener.open_dump("host/vmcore").close()
            except KvmError as failure:
                assert failure.reason is expected
                assert failure.metadata["errno"] == errno.errorcode[code]
                failed_at = nth
            else:
                break
    assert failed_at >= 2


def test_openat2_is_tried_again_after_a_signal(opener, monkeypatch, content):
    real = syscalls.syscall
    answers = [InterruptedError(errno.EINTR, "signal"), None, InterruptedError(errno.EINTR, "signal"), None]

    def interrupted(*args, **kwargs):
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return real(*args, **kwargs)

    monkeypatch.setattr(syscalls, "syscall", interrupted)
    assert content(opener.open_dump("vmcore")) == DUMP
    assert answers == []


def test_openat2_itself_is_what_is_used(opener, monkeypatch, content):
    """The fallback is no silent substitute on a kernel that has the call."""

    def fallback(*_args):
        raise AssertionError

    monkeypatch.setattr(module, "_by_parts", fallback)
    assert content(opener.open_dump("vmcore")) == DUMP


def test_the_inode_is_compared_after_the_open(way, opener, crash, monkeypatch):
    """As if /proc weren't the kernel's: what was opened is not what was looked at."""
    real = os.open

    def other(path, *args, **kwargs):
        return real(crash / "host/vmcore" if str(path).startswith("/proc/") else path, *args, **kwargs)

    monkeypatch.setattr("kvmd.opener.os.open", other)
    with pytest.raises(KvmError) as caught:
        opener.open_dump("vmcore")
    assert (caught.value.reason, caught.value.metadata["errno"]) == (Reason.SOURCE_IO, "ESTALE")


def test_messages_hold_nothing_of_the_file(way, opener, crash):
    (crash / "link").symlink_to("/etc/shadow-of-something")
    for name in ("link", "vmcore/x"):
        with pytest.raises(KvmError) as caught:
            opener.open_dump(name)
        assert "shadow" not in str(caught.value) + repr(caught.value.metadata)
        assert DUMP.decode() not in str(caught.value)
