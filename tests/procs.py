"""What tests ask of other processes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def eventually(condition: Callable[[], object], within: float) -> float:
    """Wait for a condition of another process's; how long it took, or a failure."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within} s"
        time.sleep(0.005)
    return time.monotonic() - began


def descriptors(pid: int) -> int:
    """How many files a daemon has open, not counting the two of each worker and its page cache: they come and go."""
    count = 0
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            count += "kvmd-pages" not in os.readlink(f"/proc/{pid}/fd/{fd}")
    return count - 2 * len(workers(pid))


def workers(pid: int) -> set[int]:
    """A daemon's worker processes."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(word) for word in (task / "children").read_text().split()}
    return found


def resident(pid: int) -> int:
    """How much memory a process has, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@contextlib.contextmanager
def nothing_left(pid: int) -> Iterator[None]:
    """A context in which a process must close all files that it opens."""
    before = 0
    for _ in range(5):  # of a worker that is about to end its files are closed first: too few are counted
        before = max(before, descriptors(pid))
        time.sleep(0.01)
    yield
    eventually(lambda: descriptors(pid) <= before, 3)


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A new directory that every user may enter; pytest's own are for its user alone."""
    with tempfile.TemporaryDirectory(prefix="kvmd-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def as_user(uid: int, code: str, *words: object, groups: tuple[int, ...] = ()) -> object:
    """Run Python code as another user, with libkvm imported and ``words`` as arguments; its ``answer`` comes back.

    It becomes that user before it connects, not before it imports: the interpreter may be root's alone.
    """
    program = (
        "import json, os, sys, libkvm.transports.grpc\n"
        "from kvmd.v1 import kvm_service_pb2 as pb, kvm_service_pb2_grpc as rpc, memory_pb2\n"
        f"os.setgroups({list(groups)!r}); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})\n"
        "words = json.loads(sys.argv[1])\n"
        f"{code}\n"
        "json.dump(answer, sys.stdout)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps([str(word) for word in words])], stdout=subprocess.PIPE, check=True
    )
    return json.loads(run.stdout)
