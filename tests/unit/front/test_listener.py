"""Sockets, locks and directories at start."""

from __future__ import annotations

import os
import socket
import stat
import threading

import pytest

from kvmd.front.listener import bind_unix, inherited_sockets, unlink_socket
from kvmd.front.lock import MAX_PATH, InstanceLock, ListenError
from kvmd.front.private import private_directory


@pytest.fixture
def path(place):
    return f"{place}/kvmd.sock"


def bind(path, mode=0o660, gid=None):
    with InstanceLock(path) as lock:
        return bind_unix(path, mode, lock, gid)


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
def test_mode_and_group(path, mode):
    before = os.umask(0o027)
    try:
        with bind(path, mode, gid=4321):
            status = os.lstat(path)
        assert stat.S_IMODE(status.st_mode) == mode
        assert status.st_gid == 4321
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_the_mode_is_never_wider_not_even_for_a_moment(place):
    """Watch the name from another thread while sockets are bound and removed."""
    path, seen, stop = f"{place}/s", set(), threading.Event()

    def watch():
        while not stop.is_set():
            try:
                seen.add(stat.S_IMODE(os.lstat(path).st_mode))
            except FileNotFoundError:
                continue

    thread = threading.Thread(target=watch)
    thread.start()
    with InstanceLock(path) as lock:
        for _ in range(2000):
            bind_unix(path, 0o640, lock).close()
            if seen:
                os.unlink(path)
    stop.set()
    thread.join()
    assert seen == {0o640}


def test_a_stale_socket_is_replaced(path):
    bind(path).close()
    with bind(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_live_socket_of_another_program_is_not(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        inode = os.lstat(path).st_ino
        with pytest.raises(ListenError, match="another program"):
            bind(path)
        assert os.lstat(path).st_ino == inode


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_not_replaced(path, place, kind):
    if kind == "file":
        open(path, "w").close()
    elif kind == "directory":
        os.mkdir(path)
    else:
        bind(f"{place}/stale").close()
        os.symlink("stale", path)
    inode = os.lstat(path).st_ino
    with pytest.raises(ListenError, match="not a socket"):
        bind(path)
    assert os.lstat(path).st_ino == inode


def test_longest_path(place):
    longest = f"{place}/" + "x" * (MAX_PATH - len(place) - 1)
    with bind(longest), private_directory(longest) as private, socket.socket(socket.AF_UNIX) as sock:
        sock.bind(private)
    with pytest.raises(ListenError, match="long"):
        bind(longest + "x")


def test_a_relative_path_is_refused():
    with pytest.raises(ListenError, match="absolute"):
        InstanceLock("kvmd.sock")


def test_the_directory_is_made(place):
    path = f"{place}/run/kvmd.sock"
    umask = os.umask(0o022)
    bind(path).close()
    os.umask(umask)
    assert stat.S_IMODE(os.stat(f"{place}/run").st_mode) == 0o755


def test_a_directory_that_anybody_may_change_is_refused(place):
    os.mkdir(f"{place}/open")
    os.chmod(f"{place}/open", 0o777)
    with pytest.raises(ListenError, match="everybody"):
        bind(f"{place}/open/s")
    os.chmod(f"{place}/open", 0o1777)
    bind(f"{place}/open/s").close()


def test_binding_wants_the_lock(path, place):
    with InstanceLock(f"{place}/other") as lock, pytest.raises(ListenError, match="lock"):
        bind_unix(path, 0o600, lock)
    with pytest.raises(ListenError, match="lock"):
        bind_unix(f"{place}/other", 0o600, lock)


def test_a_second_instance_is_told_who_is_the_first(path):
    with InstanceLock(path), pytest.raises(ListenError, match=rf"another kvmd \(process {os.getpid()}\) serves {path}"):
        InstanceLock(path)
    InstanceLock(path).release()


def test_a_second_instance_leaks_no_descriptor(path, fds):
    with InstanceLock(path):
        before = fds()
        with pytest.raises(ListenError):
            InstanceLock(path)
        assert fds() == before


def test_a_lock_that_is_a_link_is_refused(path, place):
    os.symlink(f"{place}/elsewhere", f"{path}.lock")
    with pytest.raises(ListenError):
        InstanceLock(path)
    assert not os.path.exists(f"{place}/elsewhere")


def test_unlink_only_under_the_lock(path):
    with InstanceLock(path) as lock:
        bind_unix(path, 0o600, lock).close()
    unlink_socket(path, lock)
    assert os.path.exists(path)
    with InstanceLock(path) as lock:
        unlink_socket(path, lock)
        unlink_socket(path, lock)
    assert not os.path.exists(path)


# --- socket activation


@pytest.fixture
def activation(monkeypatch):
    """Descriptors where systemd would put them, without disturbing the test process's own."""
    numbers = []

    def give(*socks):
        first = max(map(int, os.listdir("/proc/self/fd"))) + 10
        for index, sock in enumerate(socks):
            os.dup2(sock.fileno(), first + index)
            numbers.append(first + index)
        monkeypatch.setattr("kvmd.front.listener._LISTEN_FDS_START", first)
        return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(socks)), "OTHER": "kept"}

    yield give
    for fd in numbers:
        try:
            os.close(fd)
        except OSError:
            continue


def listening(path, kind=socket.SOCK_STREAM):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.bind(path)
    if kind != socket.SOCK_DGRAM:
        sock.listen()
    return sock


def test_sockets_are_taken_over(activation, place):
    with listening(f"{place}/a") as a, listening(f"{place}/b") as b:
        environ = activation(a, b) | {"LISTEN_FDNAMES": "main"}
        taken = inherited_sockets(environ)
    assert [(each.name, each.socket.getsockname()) for each in taken] == [
        ("main", f"{place}/a"),
        ("unknown", f"{place}/b"),
    ]
    assert environ == {"OTHER": "kept"}
    for each in taken:
        assert not each.socket.get_inheritable()
        assert not each.socket.getblocking()
        each.socket.close()


@pytest.mark.parametrize("pid", ["", "1", "x"])
def test_sockets_of_another_process_are_not(pid):
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert inherited_sockets(environ) == []
    assert environ == {}


def test_nothing_is_handed_over():
    assert inherited_sockets({}) == []


@pytest.mark.parametrize("count", ["", "-1", "x", "1000000", "²"])
def test_a_count_that_is_none(count):
    with pytest.raises(ListenError, match="LISTEN_FDS"):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})


def make_wrong(kind, place):
    if kind == "datagram":
        return listening(f"{place}/d", socket.SOCK_DGRAM)
    if kind == "seqpacket":
        return listening(f"{place}/q", socket.SOCK_SEQPACKET)
    if kind == "udp":
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if kind == "tcp, not listening":
        return socket.socket()
    if kind == "not listening":
        return socket.socket(socket.AF_UNIX)
    return open("/dev/null", "rb")


@pytest.mark.parametrize("kind", ["datagram", "seqpacket", "udp", "tcp, not listening", "not listening", "file"])
def test_what_is_no_listening_stream_socket_is_refused(activation, place, kind):
    with make_wrong(kind, place) as wrong, listening(f"{place}/a") as good:
        environ = activation(good, wrong)
        with pytest.raises(ListenError, match="inherited descriptor"):
            inherited_sockets(environ)
        assert environ == {"OTHER": "kept"}


def test_a_descriptor_that_is_not_there(monkeypatch):
    monkeypatch.setattr("kvmd.front.listener._LISTEN_FDS_START", 5000)
    with pytest.raises(ListenError, match="inherited descriptor 5000"):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


# --- the private directory


def test_private_directory_is_made_and_removed(path):
    with private_directory(path) as private, socket.socket(socket.AF_UNIX) as sock:
        assert private == f"{path}.private/grpc"
        assert stat.S_IMODE(os.lstat(f"{path}.private").st_mode) == 0o700
        sock.bind(private)
    assert not os.path.exists(f"{path}.private")


def test_private_directory_of_a_killed_daemon_is_used_again(path):
    os.mkdir(f"{path}.private", 0o755)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{path}.private/grpc")
    with private_directory(path) as private:
        assert stat.S_IMODE(os.lstat(f"{path}.private").st_mode) == 0o700
        assert not os.path.exists(private)


def test_private_directory_that_is_a_link_is_refused(path, place):
    os.mkdir(f"{place}/target")
    os.symlink("target", f"{path}.private")
    with pytest.raises(ListenError, match="not a directory of ours"), private_directory(path):
        pass
    assert os.path.islink(f"{path}.private")


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
def test_private_directory_of_another_user_is_refused(path):
    os.mkdir(f"{path}.private", 0o700)
    os.chown(f"{path}.private", 12345, 12345)
    with pytest.raises(ListenError, match="not a directory of ours"), private_directory(path):
        pass


def test_private_directory_with_something_else_in_it_is_refused(path):
    os.mkdir(f"{path}.private", 0o700)
    open(f"{path}.private/file", "w").close()
    with pytest.raises(ListenError, match="not a socket"), private_directory(path):
        pass
    assert os.path.exists(f"{path}.private/file")
