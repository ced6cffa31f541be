"""Landlock alone, without the filter in front of it."""

from __future__ import annotations

import errno
import socket

import pytest

from kvmd import syscalls
from kvmd.worker import landlock

needs = pytest.mark.skipif(landlock.abi() == 0, reason="no Landlock in this kernel")
PREPARE = "syscalls.prctl(38, 1)\n"
NAME = "def name(f, *a):\n try: f(*a)\n except OSError as e: return errno.errorcode[e.errno]\n return 'passed'\n"


@pytest.mark.parametrize(
    ("version", "files", "net", "scope", "size"),
    [
        (1, 0x1FFF, 0, 0, 8),
        (2, 0x3FFF, 0, 0, 8),
        (3, 0x7FFF, 0, 0, 8),
        (4, 0x7FFF, 3, 0, 16),
        (5, 0xFFFF, 3, 0, 16),
        (6, 0xFFFF, 3, 3, 24),
        (7, 0xFFFF, 3, 3, 24),
        (99, 0xFFFF, 3, 3, 24),
    ],
)
def test_what_each_abi_handles(version, files, net, scope, size):
    words = b"".join(word.to_bytes(8, "little") for word in (files, net, scope))
    assert landlock.attributes(version) == words[:size]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
def test_a_kernel_without_it_is_version_0(monkeypatch, code):
    def absent(*_args, **_kwargs):
        raise OSError(code, "no")

    monkeypatch.setattr(syscalls, "syscall", absent)
    assert landlock.abi() == 0
    assert landlock.restrict() == 0


@needs
def test_files_are_refused(run):
    assert (
        run(
            PREPARE + NAME + "tell(landlock.restrict())\n"
            "tell([name(open, '/etc/passwd'), name(os.listdir, '/')]\n"
            " + [name(open, '/tmp/kvmd-not-here', 'w'), name(os.mkdir, '/tmp/kvmd-not-here')])"
        )[1]
        == ["EACCES"] * 4
    )


@needs
@pytest.mark.skipif(landlock.abi() < 4, reason="TCP needs ABI 4")
def test_tcp_is_refused(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        code = "s, t = socket.socket(), socket.socket()\nlandlock.restrict()\n"
        calls = f"tell([name(s.connect, {address!r}), name(t.bind, ('127.0.0.1', 0))])"
        assert run(PREPARE + NAME + code + calls) == ["EACCES", "EACCES"]


@needs
@pytest.mark.skipif(landlock.abi() < 6, reason="scopes need ABI 6")
def test_abstract_sockets_and_signals_are_refused(run):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0kvmd-test-landlock")
        server.listen()
        assert run(
            PREPARE + NAME + "s = socket.socket(socket.AF_UNIX)\nlandlock.restrict()\n"
            "tell([name(s.connect, '\\0kvmd-test-landlock'), name(os.kill, os.getppid(), 0)])"
        ) == ["EPERM", "EPERM"]


@needs
def test_no_descriptor_is_left(run):
    before, after = run(
        PREPARE + "d = os.open('/proc/self/fd', os.O_RDONLY)\nbefore = os.listdir(d)\nlandlock.restrict()\n"
        "tell([before, os.listdir(d)])"
    )
    assert before == after
