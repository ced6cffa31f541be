"""Peer credentials: from the kernel, and refused once the process is gone."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess

import pytest

from kvmd.front import peer
from kvmd.front.peer import PeerGoneError, credentials, exited


@pytest.fixture
def listener(place):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{place}/kvmd.sock")
        os.chmod(f"{place}/kvmd.sock", 0o666)
        sock.listen()
        yield sock


def test_of_ourselves(pair):
    one, _ = pair()
    who, pidfd = credentials(one)
    os.close(pidfd)
    assert (who.uid, who.gid, who.pid, who.cert) == (os.getuid(), os.getgid(), os.getpid(), None)
    assert who.exe == os.readlink("/proc/self/exe")
    assert set(who.groups) == set(os.getgroups())


def test_the_pidfd_is_the_processes_and_not_inherited(listener, spawn):
    process = spawn("sock.recv(1)")
    with listener.accept()[0] as client:  # which the process waits for
        _, pidfd = credentials(client)
        try:
            with open(f"/proc/self/fdinfo/{pidfd}") as info:
                assert f"Pid:\t{process.pid}\n" in info.read()
            assert not os.get_inheritable(pidfd)
            assert not exited(pidfd)
            process.kill()
            process.wait()
            assert exited(pidfd)
        finally:
            os.close(pidfd)


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
def test_more_groups_than_the_socket_module_can_ask_for(listener, spawn):
    groups = list(range(20000, 20900))
    spawn("sock.recv(1)", user=12345, group=12345, extra_groups=groups)
    with listener.accept()[0] as client:
        who, pidfd = credentials(client)
    os.close(pidfd)
    assert sorted(who.groups) == groups


def test_start_time_of_a_process_whose_name_looks_like_a_stat_line(listener, spawn):
    process = spawn("open('/proc/self/comm', 'w').write('x) R 1 (y) Z')\nprint(flush=True)\nsock.recv(1)")
    process.stdout.readline()
    with listener.accept()[0] as client:
        who, pidfd = credentials(client)
    os.close(pidfd)
    with open(f"/proc/{process.pid}/stat") as stat:
        line = stat.read()
    assert "(x) R 1 (y) Z)" in line
    assert who.start_time == int(line[line.rindex(")") :].split()[20])
    with open("/proc/uptime") as uptime:
        age = float(uptime.read().split()[0]) - who.start_time / os.sysconf("SC_CLK_TCK")
    assert 0 <= age < 60


@pytest.mark.parametrize("reap", [True, False], ids=["reaped", "zombie"])
def test_a_process_that_has_exited_is_refused(listener, spawn, fds, reap):
    process = spawn("if os.fork(): os._exit(0)\nsock.recv(1)")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reap:
        process.wait()
    with listener.accept()[0] as client:
        before = fds()
        with pytest.raises(PeerGoneError):
            credentials(client)
        assert fds() == before


def test_a_process_that_exits_while_proc_is_read_is_refused(listener, spawn, fds, monkeypatch):
    process = spawn("sock.recv(1)")

    def read(pid):
        process.kill()
        process.wait()
        return 1, "/somebody/elses", "/"

    monkeypatch.setattr(peer, "_process", read)
    with listener.accept()[0] as client:
        before = fds()
        with pytest.raises(PeerGoneError):
            credentials(client)
        assert fds() == before


class Kernel:
    """A socket of a kernel that answers SO_PEERPIDFD with an errno."""

    def __init__(self, code):
        self.code = code

    def getsockopt(self, level, option, size):
        if option == socket.SO_PEERCRED:
            return struct.pack("=iII", os.getpid(), 1, 2)
        if option == peer.SO_PEERGROUPS:
            return struct.pack("=2I", 3, 4)
        raise OSError(self.code, os.strerror(self.code))


def test_an_old_kernel_has_no_pidfd():
    who, pidfd = credentials(Kernel(errno.ENOPROTOOPT))
    assert pidfd is None
    assert (who.uid, who.gid, who.groups) == (1, 2, (3, 4))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ESRCH])
def test_a_reaped_peer_is_not_taken_for_an_old_kernel(code):
    with pytest.raises(PeerGoneError):
        credentials(Kernel(code))


def test_another_failure_is_no_identity():
    with pytest.raises(OSError, match="Too many open files"):
        credentials(Kernel(errno.EMFILE))


def test_proc_that_cant_be_read_gives_none():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert peer._process(ended.pid) == (None, None, None)
