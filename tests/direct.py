"""What the tests of direct reads stand on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest

import libkvm
from daemon import Daemon
from images import fixture
from libkvm.calls import GET_TICKET
from libkvm.fast.link import Link
from procs import eventually

QEMU = fixture("qemu/vmcore.kdump")
BANNER = QEMU.truth["kallsyms"]["linux_banner"]
POLICY = """
[[policy]]
subjects = ["uid:4001", "uid:4002"]
images = ["dump:*"]
verbs = ["info", "symbols", "read"]

[[policy]]
subjects = ["uid:4003"]
images = ["dump:*"]
verbs = ["info", "symbols"]
"""
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")


def link(kernel: libkvm.Kernel) -> Link:
    made = kernel._direct.link(kernel._id)
    assert made is not None
    return made


def records(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]
    return [line for line in lines if line["event"] == event]


def worker(daemon: Daemon) -> int:
    """The process behind the one image that is open."""
    eventually(lambda: records(daemon, "open"), 10)
    [pid] = {record["worker"] for record in records(daemon, "open")}
    return pid


def ticket(kernel: libkvm.Kernel) -> tuple[bytes, str]:
    answer = kernel._shared.unary(GET_TICKET, GET_TICKET.request(descriptor=kernel._id))
    return answer.ticket, answer.socket


def hand_in(path: str, word: bytes) -> list[int]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.settimeout(10)
        door.connect(path)
        door.send(word)
        return socket.recv_fds(door, 1, 8)[1]


def as_user(uid: int, code: str, *words: str) -> Any:
    """Run code with libkvm imported as another user; its ``answer`` comes back."""
    program = (
        "import json, os, sys, socket, libkvm, libkvm.transports.grpc\n"
        f"os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        f"words = sys.argv[1:]\n{code}\njson.dump(answer, sys.stdout)\n"
    )
    run = subprocess.run([sys.executable, "-c", program, *words], stdout=subprocess.PIPE, check=True, timeout=60)
    return json.loads(run.stdout)
