"""Checks of stack traces: against /proc/PID/stack, which the kernel unwinds itself, by the same tables."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from guest import as_user, load, zoo
from libkvm import KvmError, Stack
from libkvm.client import Client

_LINE = re.compile(r"\[<0>\] (\S+)\+(0x[0-9a-f]+)/")
_SWITCHES = re.compile(r"ctxt_switches:\s*(\d+)")
_ALIASES = ("__sched_text_start", "__sched_text_end")


def _shown(pid: int, thread: int) -> tuple[int, list[tuple[str, int]]] | None:
    """What /proc says: how often a thread was switched from, and its stack; None once it's gone."""
    place = Path(f"/proc/{pid}/task/{thread}")
    with suppress(OSError):
        switches = sum(map(int, _SWITCHES.findall((place / "status").read_text(errors="surrogateescape"))))
        matches = [_LINE.match(line) for line in (place / "stack").read_text().splitlines()]
        return switches, [(match[1], int(match[2], 16)) for match in matches if match]
    return None


def _threads() -> dict[int, int]:
    return {int(path.name): int(path.parts[2]) for path in Path("/proc").glob("[0-9]*/task/[0-9]*")}


def _is_kvmd(pid: int) -> bool:
    with suppress(OSError):
        return b"kvmd" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def stacks() -> str:
    """Threads that sleep have the stacks that /proc shows; those that run are refused, and nothing else is."""
    with zoo(), load(1):
        threads = _threads()
        serving = {thread for thread, pid in threads.items() if pid == os.getpid() or _is_kvmd(pid)}
        before = {thread: _shown(pid, thread) for thread, pid in threads.items()}
        found, bounds = as_user("alice", _all)
        after = {thread: _shown(pid, thread) for thread, pid in _threads().items()}
    compared, racing, running, wrong = 0, 0, 0, []
    for stack in found:
        if stack.error is not None:
            assert stack.error.reason.value in ("TASK_RUNNING", "CHANGED"), stack
            running += 1
            continue
        if stack.pid in serving:  # which sleep and wake for this very call
            continue
        shown = before.get(stack.pid)
        if not stack.frames or shown is None or shown != after.get(stack.pid):
            racing += 1
            continue
        # The kernel leaves out the scheduler's own functions.
        ours = [(f.symbol, f.offset) for f in stack.frames if not bounds[0] <= f.pc < bounds[1]]
        compared += 1
        if ours != shown[1] or not stack.complete:
            wrong.append((stack, shown))
    assert not wrong, f"{len(wrong)} of {compared}: {wrong[:3]}"
    assert compared > 40, compared
    assert running, "a process ran all the time"
    return f"{compared} stacks alike, {racing} changed meanwhile, {running} running"


def _all(client: Client) -> tuple[list[Stack], list[int]]:
    with client.open() as kernel:
        return kernel.stacks(timeout=120), [kernel.symbol(name).value for name in _ALIASES]


def refusals() -> str:
    """What runs is refused: this process, and every CPU; and so is who may not list processes."""

    def ask(client: Client) -> list[str]:
        reasons = []
        with client.open() as kernel:
            for request in ({"cpu": 0}, {"task": os.getpid()}, {"task": 4_000_000}):
                try:
                    kernel.stack(**request, timeout=120)
                    reasons.append("none")
                except KvmError as e:
                    reasons.append(e.reason.value)
        return reasons

    reasons = as_user("alice", ask)
    assert reasons[0] == "TASK_RUNNING", reasons
    # On one of two CPUs the worker answers this process, which then sleeps in poll.
    assert reasons[1] in ("TASK_RUNNING", "none"), reasons
    assert reasons[2] == "NO_SUCH_PROCESS", reasons
    return ", ".join(reasons)


STACKS = {f.__name__: f for f in (stacks, refusals)}
