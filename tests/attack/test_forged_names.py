"""Identity hangs on a random abstract name that everybody can read in /proc/net/unix: reading it must be of no use."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import grpc
import pytest

import libkvm
from clients import connecting_as, live_names, relayed
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from procs import as_user, eventually

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

QEMU = fixture("qemu/vmcore.kdump")
CONFIG = '[[policy]]\nsubjects = ["uid:4003"]\nimages = ["dump:*"]\nverbs = ["*"]\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent], CONFIG) as running:
        yield running


def private(daemon: Daemon) -> str:
    return f"{daemon.target.removeprefix('unix:')}.private/grpc"


def forging(daemon: Daemon, name: bytes) -> Callable[[], socket.socket]:
    """What connects to grpc's private socket itself, from a name of its choice; only root gets so far."""

    def made() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.bind(b"\0" + name)
            sock.connect(private(daemon))
        except OSError:
            sock.close()
            raise
        return sock

    return made


def refused(target: str) -> tuple[grpc.StatusCode, str]:
    """How a call is refused that opens a dump and reads nothing."""
    with grpc.insecure_channel(target) as channel, pytest.raises(grpc.RpcError) as failure:
        rpc.KvmServiceStub(channel).Open(pb.OpenRequest(corefile=str(QEMU.path)), timeout=10)
    return failure.value.code(), failure.value.details()


@pytest.mark.parametrize("name", [b"0" * 32, b"kvmd", b"unix-abstract:" + b"0" * 32, b"uid:0", bytes(range(128, 144))])
def test_forged_name_on_the_private_socket(daemon: Daemon, name: bytes) -> None:
    """Even root, who alone gets so far, is nobody there."""
    with relayed(forging(daemon, name)) as target:
        code, text = refused(target)
    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert "did not come through" in text


def test_private_socket_without_a_name(daemon: Daemon) -> None:
    assert refused(f"unix:{private(daemon)}")[0] is grpc.StatusCode.UNAUTHENTICATED


def test_name_of_a_live_connection_is_taken(daemon: Daemon) -> None:
    """And once the connection is over, its name is nobody's before it can be taken."""
    before = live_names(daemon.process.pid)
    with connecting_as(4003, daemon.target) as peer, peer.connect():
        eventually(lambda: live_names(daemon.process.pid) - before, 5)
        (name,) = live_names(daemon.process.pid) - before
        with pytest.raises(OSError, match="in use"):
            forging(daemon, name)()
    eventually(lambda: name not in live_names(daemon.process.pid), 5)
    with relayed(forging(daemon, name)) as target:
        assert refused(target)[0] is grpc.StatusCode.UNAUTHENTICATED


def test_another_user_gets_to_no_private_socket(daemon: Daemon) -> None:
    """Not even from a network namespace of its own, where the name of a live connection is free to take."""
    code = """
import ctypes, errno, socket
def attempt(call, *words):
    try:
        return call(*words)
    except OSError as failure:
        return errno.errorcode[failure.errno]
libc = ctypes.CDLL(None, use_errno=True)
answer = [libc.unshare(0x10000000 | 0x40000000)]  # CLONE_NEWUSER, CLONE_NEWNET
for path in words[0], words[0].replace("/grpc", "/self"):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(b"\\0" + words[1].encode())
    answer.append(attempt(sock.connect, path))
    sock.close()
answer += [attempt(os.listdir, os.path.dirname(words[0])), attempt(os.rename, os.path.dirname(words[0]), "/tmp/x")]
"""
    before = live_names(daemon.process.pid)
    with connecting_as(4003, daemon.target) as peer, peer.connect():
        eventually(lambda: live_names(daemon.process.pid) - before, 5)
        (name,) = live_names(daemon.process.pid) - before
        unshared, *answers = as_user(4002, code, private(daemon), name.decode())
    if unshared:
        pytest.skip("users can't make namespaces here")
    assert answers == ["EACCES"] * 4


def test_name_on_the_public_socket_is_not_looked_at(daemon: Daemon) -> None:
    """A client whose own end has a token's form is the user that it is."""
    for name in (b"f" * 32, b"uid:0"):
        with connecting_as(4002, daemon.target) as peer, relayed(lambda p=peer, n=name: p.connect(n)) as target:
            code, text = refused(target)
        assert code is grpc.StatusCode.PERMISSION_DENIED
        assert "uid:4002" in text


def test_metadata_names_nobody(daemon: Daemon) -> None:
    """Nothing in a call says who calls."""
    claims = [("x-forwarded-for", "uid:4003"), ("peer", "uid:0"), ("kvmd-identity", "uid:0"), ("authorization", "0")]
    with (
        connecting_as(4002, daemon.target) as peer,
        relayed(peer.connect) as target,
        grpc.insecure_channel(target, [("grpc.default_authority", "uid:0")]) as channel,
        pytest.raises(grpc.RpcError) as failure,
    ):
        rpc.KvmServiceStub(channel).Open(pb.OpenRequest(corefile=str(QEMU.path)), metadata=claims)
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED
    # The same way leads a user to the dump whom a rule does name.
    with (
        connecting_as(4003, daemon.target) as peer,
        relayed(peer.connect) as target,
        libkvm.connect(target) as client,
    ):
        client.open(corefile=QEMU.path).close()
