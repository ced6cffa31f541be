"""Direct reads between a real daemon, its workers and clients of every kind: who is let in, and what that costs."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading

import pytest

import libkvm
from daemon import Daemon
from direct import BANNER, QEMU, ROOT, as_user, hand_in, link, records, ticket, worker
from kvmd.fast import HALF, ONE, PAGE, TICKET
from procs import eventually, workers


def test_reads_go_directly_and_are_counted(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    assert kernel.read(BANNER, 13) == b"Linux version"
    assert link(kernel).pages is not None
    assert kernel.readv([(BANNER, 5), (BANNER + PAGE, 100)])[0].data == b"Linux"
    kernel.close()
    eventually(lambda: records(daemon, "close"), 5)
    [granted] = records(daemon, "grant")
    [read] = records(daemon, "read")
    assert granted["descriptor"] == read["descriptor"]
    assert read["calls"] == 2  # the second page was not in the cache yet
    assert read["bytes"] == 113


def test_a_ticket_is_good_once(kernel: libkvm.Kernel) -> None:
    word, path = ticket(kernel)
    assert len(word) == TICKET
    fds = hand_in(path, word)
    assert len(fds) == 3
    assert hand_in(path, word) == []
    for fd in fds:
        os.close(fd)


def test_a_ticket_that_nobody_was_given(kernel: libkvm.Kernel) -> None:
    _, path = ticket(kernel)
    for word in (b"", b"x", os.urandom(TICKET), os.urandom(1000)):
        assert hand_in(path, word or b"\0") == []


def test_a_ticket_of_a_closed_descriptor(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client:
        kernel = client.open(str(QEMU.path))
        word, path = ticket(kernel)
        kernel.close()
        assert hand_in(path, word) == []


def test_a_ticket_in_another_process_s_hands(kernel: libkvm.Kernel) -> None:
    """Of the same user, even: it belongs to the process that asked. And it is spent."""
    word, path = ticket(kernel)
    code = (
        "import socket, sys\n"
        "door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "door.connect(sys.argv[1]); door.send(bytes.fromhex(sys.argv[2])); print(len(socket.recv_fds(door, 1, 8)[1]))"
    )
    thief = subprocess.run([sys.executable, "-c", code, path, word.hex()], capture_output=True, check=True)
    assert thief.stdout == b"0\n"
    assert hand_in(path, word) == []


@ROOT
def test_a_ticket_in_another_user_s_hands(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    word, path = ticket(kernel)
    code = (
        "door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); door.connect(words[0])\n"
        "door.send(bytes.fromhex(words[1])); answer = len(socket.recv_fds(door, 1, 8)[1])"
    )
    assert as_user(4001, code, path, word.hex()) == 0


@ROOT
def test_another_user_reads_directly(daemon: Daemon) -> None:
    code = (
        "with libkvm.connect(words[0]) as client, client.open(words[1]) as kernel:\n"
        "    answer = [kernel.read(int(words[2]), 13).decode(), kernel._direct.link(kernel._id) is not None]"
    )
    assert as_user(4001, code, daemon.target, str(QEMU.path), str(BANNER)) == ["Linux version", True]


@ROOT
def test_who_may_not_read_gets_no_ticket(daemon: Daemon) -> None:
    code = (
        "from libkvm.calls import GET_TICKET\n"
        "with libkvm.connect(words[0]) as client, client.open(words[1]) as kernel:\n"
        "    answer = []\n"
        "    for call in (lambda: kernel.read(int(words[2]), 8),\n"
        "                 lambda: client._session.unary(GET_TICKET, GET_TICKET.request(descriptor=kernel._id))):\n"
        "        try:\n"
        "            call()\n"
        "        except libkvm.KvmError as failure:\n"
        "            answer.append(failure.reason.value)\n"
        "    answer.append(kernel._direct.link(kernel._id) is None)"
    )
    answer = as_user(4003, code, daemon.target, str(QEMU.path), str(BANNER))
    assert answer == ["POLICY_DENIED", "POLICY_DENIED", True]


def test_procfs_has_no_fast_path(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client, client.open(no_files=True) as kernel:
        assert kernel._direct.link(kernel._id) is None


def test_nobody_can_write_what_is_shared(kernel: libkvm.Kernel) -> None:
    word, path = ticket(kernel)
    sock, *memory = hand_in(path, word)
    for fd in memory:
        size = os.fstat(fd).st_size
        for forbidden in (
            lambda fd=fd, size=size: mmap.mmap(fd, size),
            lambda fd=fd: os.pwrite(fd, b"x", 0),
            lambda fd=fd: os.ftruncate(fd, 0),
            lambda fd=fd, size=size: os.ftruncate(fd, 2 * size),
            lambda fd=fd: mmap.mmap(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), PAGE),
        ):
            with pytest.raises(PermissionError):
                forbidden()
        os.close(fd)
    os.close(sock)
    assert os.fstat is not None


@pytest.mark.parametrize(
    "bad", [b"x", b"\xff" * 5000, ONE.pack(1, 9, 0, 0, 0, BANNER, 8), ONE.pack(1, 1, 0, 0, 0, BANNER, HALF + 1)]
)
def test_garbage_ends_its_own_link_and_no_other(daemon: Daemon, kernel: libkvm.Kernel, bad: bytes) -> None:
    pid = worker(daemon)
    with libkvm.connect(daemon.target) as client, client.open(str(QEMU.path)) as other:
        mine, theirs = link(kernel), link(other)
        mine._sock.send(bad)
        assert mine._sock.recv(1) == b""
        assert kernel.read(BANNER, 13) == b"Linux version"  # by gRPC, or a new link
        assert other.read(BANNER, 13) == b"Linux version"
        assert theirs.open
        assert pid in workers(daemon.process.pid)


def test_a_flood_costs_its_client_alone(daemon: Daemon, kernel: libkvm.Kernel) -> None:
    """Requests without end, and no answer taken."""
    with libkvm.connect(daemon.target) as client, client.open(str(QEMU.path)) as other:
        mine = link(kernel)._sock
        mine.setblocking(False)
        request, ended = ONE.pack(1, 1, 0, 0, 0, BANNER & -PAGE, PAGE), []

        def flood() -> None:
            while not ended:
                try:
                    mine.send(request)
                except BlockingIOError:
                    pass
                except OSError:
                    ended.append(True)

        thread = threading.Thread(target=flood)
        thread.start()
        for _ in range(50):
            assert other.read(BANNER, 13) == b"Linux version"
            assert other.read(QEMU.truth["kallsyms"]["__start_rodata"], 200_000)
        thread.join(20)
        assert ended
        assert link(other).open
    assert kernel.read(BANNER, 5) == b"Linux"


def test_a_large_read_that_is_never_taken(kernel: libkvm.Kernel, daemon: Daemon) -> None:
    """It lies in that client's window, and holds up nobody."""
    link(kernel)._sock.send(ONE.pack(1, 1, 0, 0, 0, QEMU.truth["kallsyms"]["__start_rodata"], 200_000))
    with libkvm.connect(daemon.target) as client, client.open(str(QEMU.path)) as other:
        assert other.read(BANNER, 5) == b"Linux"
