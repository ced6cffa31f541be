"""What tests ask of other processes."""

from __future__ import annotations

import contextlib
import os
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
    """How many files a daemon has open, not counting the two of each worker, which come and go."""
    return len(os.listdir(f"/proc/{pid}/fd")) - 2 * len(workers(pid))


def workers(pid: int) -> set[int]:
    """A daemon's worker processes."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found |= {int(word) for word in (task / "children").read_text().split()}
    return found


@contextlib.contextmanager
def nothing_left(pid: int) -> Iterator[None]:
    """A context in which a process must close all files that it opens."""
    before = descriptors(pid)
    yield
    eventually(lambda: descriptors(pid) <= before, 3)
