"""A process that connects and ends leaves its pid to somebody with more rights: that somebody's rights are not gained.

Run in a pid namespace of its own, where the next pid can be chosen without taking it from others. This file is also
the program that runs there.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import connecting_as, relayed
from daemon import Daemon, running_daemon
from images import fixture

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
CONFIG = '[[policy]]\nsubjects = ["uid:4003"]\nimages = ["dump:*"]\nverbs = ["*"]\n'


@contextlib.contextmanager
def successor(pid: int) -> Iterator[None]:
    """A process of uid 4003's, whom the policy allows all, that has the pid of one that has ended."""
    for _ in range(1000):
        Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "600"], user=4003, group=4003, extra_groups=[])
        if process.pid == pid:
            break
        process.kill()
        process.wait()
    else:
        raise AssertionError(f"pid {pid} was never free")
    with process:
        yield
        assert process.poll() is None
        process.kill()


def ended(sock: socket.socket) -> bool:
    """Whether the daemon closes a connection, whatever it says before."""
    sock.settimeout(10)
    with contextlib.suppress(ConnectionError):
        while sock.recv(1 << 16):
            pass
    return True


def before_accept(daemon: Daemon) -> object:
    """The daemon sees the connection only after its pid is another's."""
    os.kill(daemon.process.pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        with connecting_as(4002, daemon.target) as peer:
            held = stack.enter_context(peer.connect())
            peer.end()
        stack.enter_context(successor(peer.process.pid))
        os.kill(daemon.process.pid, signal.SIGCONT)
        return ended(held), peer.process.pid


def after_accept(daemon: Daemon) -> object:
    """The connection was in use when its pid became another's."""
    import libkvm

    with contextlib.ExitStack() as stack:
        with connecting_as(4002, daemon.target) as peer:
            held = peer.connect()
            target = stack.enter_context(relayed(held.dup))
            client = stack.enter_context(libkvm.connect(target))
            try:
                client.open(corefile=fixture("qemu/vmcore.kdump").path)
            except libkvm.AccessError as failure:
                first = failure.reason.value
            peer.end()
        stack.enter_context(successor(peer.process.pid))
        gone = ended(held)
        held.close()
        try:
            client.open(corefile=fixture("qemu/vmcore.kdump").path)
        except libkvm.KvmError as failure:
            return first, gone, failure.reason.value
        return first, gone, "OK"


def main() -> None:
    with running_daemon([fixture("qemu/vmcore.kdump").path.parent], CONFIG) as daemon:
        closed, pid = before_accept(daemon)
        said = [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]
        seen = [record["peer"] for record in said if record["pid"] == pid]
        sys.stdout.write(json.dumps([closed, seen, after_accept(daemon)]))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a pid namespace")
def test_pid_reuse() -> None:
    """The pidfd pins who connected: the connection ends with that process, before accept and after."""
    if shutil.which("unshare") is None or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespaces here")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([*UNSHARE, sys.executable, __file__], stdout=subprocess.PIPE, env=env, timeout=100)
    assert run.returncode == 0
    closed, seen, after = json.loads(run.stdout)
    assert (closed, seen) == (True, [])
    assert after == ["POLICY_DENIED", True, "UNREACHABLE"]


if __name__ == "__main__":
    main()
