"""Code run in a process of its own, which may give up what this one still needs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmd.worker.protocol import Kind

from .serving import Daemon

ROOT = Path(__file__).parents[3]

_HEAD = """
import ctypes, errno, json, mmap, os, resource, signal, socket, sys, threading
import drgn, _drgn_util.plugins
from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms
from kvmd import syscalls
from kvmd.worker import bpf, landlock, sandbox, seccomp
from kvmd.worker.sandbox import SandboxLimits
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
box = int(sys.argv[1])
sock = socket.socket(fileno=box) if box >= 0 else None

def raw(number, *arguments):
    "A system call's errno by name, or its value."
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result

def tell(value):
    print(json.dumps(value), flush=True)
"""


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run code as root or as uid 12345, its standard output a pipe; what it tells, or the signal that ended it."""

    def start(
        code: str, sock: socket.socket | None = None, *, root: bool = True, env: dict[str, str] | None = None
    ) -> Any:
        drop = (
            ""
            if root or os.getuid()
            else "os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)\n"
        )
        number = -1 if sock is None else sock.fileno()
        done = subprocess.run(
            [sys.executable, "-c", _HEAD + drop + code, str(number)],
            env={"PYTHONPATH": str(ROOT), "DRGN_DISABLE_PLUGINS": "*", **(env or {})},
            pass_fds=() if sock is None else (number,),
            capture_output=True,
            check=False,
            timeout=120,
        )
        if done.returncode < 0:
            return -done.returncode
        assert not done.returncode, done.stderr.decode()
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return lines[0] if len(lines) == 1 else lines

    return start


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A loop with an image open."""
    running = Daemon()
    assert running.open() == (Kind.RESULT, b"\1kallsyms")
    yield running
    running.close()
