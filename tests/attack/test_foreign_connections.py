"""A connection is its connecter's, whoever uses it: passed on, inherited, or made by a program of another's.

To pass one on is to lend what it may do, as with any open file, for as long as the process that connected lives.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import libkvm
from clients import Connecter, connecting_as, relayed
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from kvmd.v1 import memory_pb2
from procs import eventually, open_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

QEMU = fixture("qemu/vmcore.kdump")
BANNER = QEMU.truth["kallsyms"]["linux_banner"]
CONFIG = '[[policy]]\nsubjects = ["uid:4003", "uid:4004"]\nimages = ["dump:*"]\nverbs = ["*"]\n'


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent], CONFIG) as running:
        yield running


def denied(target: str) -> str:
    """The user that an open is denied to."""
    with libkvm.connect(target) as client, pytest.raises(libkvm.AccessError) as failure:
        client.open(corefile=QEMU.path)
    assert failure.value.reason.value == "POLICY_DENIED"
    return failure.value.message.partition(" allow ")[2].split()[0]


def test_passing_a_connection_to_the_privileged_gains_nothing(daemon: Daemon) -> None:
    """This process is root, but the connection is uid 4002's."""
    with connecting_as(4002, daemon.target) as peer, relayed(peer.connect) as target:
        assert denied(target) == "uid:4002"


def test_passed_connection_ends_with_its_process(daemon: Daemon) -> None:
    """Who got it may use it until then, as its connecter; the descriptors opened over it go as well."""
    with connecting_as(4003, daemon.target) as peer, relayed(peer.connect) as target, libkvm.connect(target) as client:
        kernel = client.open(corefile=QEMU.path)
        assert kernel.read(BANNER, 13) == b"Linux version"
        held = peer.connect()
        peer.end()
        with held:
            held.settimeout(5)
            while held.recv(1 << 16):  # what grpc had said before
                pass
        with pytest.raises(libkvm.UnavailableError):
            kernel.read(BANNER, 13)
        eventually(lambda: b"".join(daemon.log).count(b'"event": "close"') >= 1, 5)


def answered(stub: rpc.KvmServiceStub, id_: str) -> list[object]:
    """What reading and closing a descriptor that isn't one's own answers, without the names of the requests."""
    told: list[object] = []
    for call, request in (
        (stub.Read, memory_pb2.ReadRequest(descriptor=id_, length=8)),
        (stub.Close, pb.CloseRequest(descriptor=id_)),
    ):
        with pytest.raises(grpc.RpcError) as failure:
            call(request, timeout=10)
        (detail,) = rpc_status.from_call(failure.value).details
        words = dict(error_details_pb2.ErrorInfo.FromString(detail.value).metadata)
        request_name = words.pop("request")
        told.append((failure.value.code(), failure.value.details().replace(request_name, "REQUEST"), words))
    return told


def test_descriptor_of_another_uid_answers_as_an_unknown_one(daemon: Daemon) -> None:
    """Another user who has the id, and may open the same dump, is told the same as of a made-up id, to the letter."""
    with (
        connecting_as(4003, daemon.target) as peer,
        connecting_as(4004, daemon.target) as other,
        relayed(peer.connect) as own,
        relayed(other.connect) as foreign,
        grpc.insecure_channel(own) as ours,
        grpc.insecure_channel(foreign) as theirs,
    ):
        owner, stranger = rpc.KvmServiceStub(ours), rpc.KvmServiceStub(theirs)
        id_ = owner.Open(pb.OpenRequest(corefile=str(QEMU.path)), timeout=10).descriptor
        seen = answered(stranger, id_)
        assert seen == answered(stranger, "made-up")
        assert [code for code, *_ in seen] == [grpc.StatusCode.NOT_FOUND] * 2
        assert owner.Close(pb.CloseRequest(descriptor=id_), timeout=10) == pb.CloseResponse()


HELPER = """
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
/* connect PATH | drop PATH: connects (drop: as the real user) and passes the connection to standard input's socket.
   hold: passes what it has as standard output. All wait until standard input is closed. */
static void pass(int fd)
{
    char x = 'x', room[CMSG_SPACE(sizeof(int))];
    struct iovec data = { &x, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    sendmsg(0, &message, 0);
}
int main(int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct pollfd end = { 0, POLLIN, 0 };
    int fd = 1;
    if (argc == 3) {
        if (!strcmp(argv[1], "drop") && setresuid(getuid(), getuid(), getuid()))
            return 2;
        strncpy(address.sun_path, argv[2], sizeof address.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            return 3;
    }
    pass(fd);
    poll(&end, 1, -1);
    return 0;
}
"""


@pytest.fixture(scope="module")
def helper() -> Iterator[Path]:
    """A program that everybody may run, not yet anybody's."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    with open_folder() as folder:
        (folder / "helper.c").write_text(HELPER)
        subprocess.run(["cc", "-o", folder / "helper", folder / "helper.c"], check=True)
        if os.statvfs(folder).f_flag & os.ST_NOSUID:
            pytest.skip("setuid programs count for nothing here")
        yield folder / "helper"


@contextlib.contextmanager
def running(helper: Path, owner: int, user: int, *words: str, stdout: int | None = None) -> Iterator[Connecter]:
    """The helper, setuid for its owner, run by a user."""
    os.chown(helper, owner, owner)
    helper.chmod(0o4755)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    who = {"user": user, "group": user, "extra_groups": []}
    with theirs:
        process = subprocess.Popen([helper, *words], stdin=theirs, stdout=stdout, **who)
    with process, ours:
        yield Connecter(process, ours)


def passed(peer: Connecter) -> socket.socket:
    """The connection that the helper passes on by itself."""
    _, (fd,), _, _ = socket.recv_fds(peer._sock, 1, 1)
    return socket.socket(fileno=fd)


def test_setuid_program_connects_as_its_owner(daemon: Daemon, helper: Path) -> None:
    """The effective uid counts, as for any file that it opens: what it does for its user is its own business."""
    path = daemon.target.removeprefix("unix:")
    with (
        running(helper, 4003, 4002, "connect", path) as peer,
        relayed(lambda: passed(peer)) as target,
        libkvm.connect(target) as client,
        client.open(corefile=QEMU.path) as kernel,
    ):
        assert kernel.read(BANNER, 13) == b"Linux version"


def test_setuid_program_that_drops_its_rights_connects_as_its_user(daemon: Daemon, helper: Path) -> None:
    path = daemon.target.removeprefix("unix:")
    for owner in (0, 4003):
        with running(helper, owner, 4002, "drop", path) as peer, relayed(lambda p=peer: passed(p)) as target:
            assert denied(target) == "uid:4002"


_BECOMES_ROOT = """
import os, socket, sys
os.setgroups([]); os.setresgid(4002, 4002, 4002); os.setresuid(4002, 4002, 4002)
made = socket.socket(socket.AF_UNIX)
made.connect(sys.argv[1])
os.dup2(made.fileno(), 1)
os.execv(sys.argv[2], [sys.argv[2]])
"""


def test_client_that_becomes_root_after_it_has_connected_is_who_it_was(daemon: Daemon, helper: Path) -> None:
    """By executing a setuid program before the daemon accepts: a look at /proc/PID would find root there."""
    os.chown(helper, 0, 0)
    helper.chmod(0o4755)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-S", "-c", _BECOMES_ROOT, daemon.target.removeprefix("unix:"), str(helper)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        os.kill(daemon.process.pid, signal.SIGSTOP)
        try:
            with theirs:
                process = stack.enter_context(subprocess.Popen(command, stdin=theirs))
            stack.callback(ours.close)
            connection = stack.enter_context(passed(Connecter(process, ours)))
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert re.search(r"^Uid:\t4002\t0\t", status, re.M)
        finally:
            os.kill(daemon.process.pid, signal.SIGCONT)
        assert denied(stack.enter_context(relayed(connection.dup))) == "uid:4002"
