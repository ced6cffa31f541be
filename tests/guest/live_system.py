"""Checks of the calls about the whole system: load, CPUs, CPU times, swap areas, open files; against /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from guest import as_user
from libkvm.client import Client


def _ask(call: str) -> Any:
    def ask(client: Client) -> Any:
        with client.open() as kernel:
            return getattr(kernel, call)()

    return as_user("alice", ask)


def load_average() -> str:
    """The load averages are those of /proc/loadavg."""

    def shown() -> list[float]:
        return [float(word) for word in Path("/proc/loadavg").read_text().split()[:3]]

    for _ in range(5):  # they change every five seconds
        before, found, after = shown(), _ask("load_average"), shown()
        if all(min(b, a) - 0.011 <= f <= max(b, a) + 0.011 for b, f, a in zip(before, found, after, strict=True)):
            return " ".join(f"{value:.2f}" for value in found)
    raise AssertionError((before, found, after))


def cpus() -> str:
    """The CPUs are those of /sys."""
    found = _ask("cpus")
    online = {cpu.number for cpu in found if cpu.online}
    assert online == os.sched_getaffinity(0), found
    return f"{len(found)} possible, {len(online)} online"


def cpu_times() -> str:
    """The times are those of /proc/stat."""

    def shown() -> list[int]:
        return [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:5]]

    before, found, after = shown(), _ask("cpu_times")[0], shown()
    ticks = [value // 10**7 for value in (found.user_ns, found.nice_ns, found.system_ns, found.idle_ns)]
    # A sleeping CPU's idle time is counted by the tick, in the record and in /proc alike.
    good = all(b - 3 <= f <= a + 3 for b, f, a in zip(before, ticks, after, strict=True))
    assert good, (before, ticks, after)
    return f"{ticks} of {after}"


def swap_areas() -> str:
    """The swap areas are those of /proc/swaps."""
    found = _ask("swap_areas")
    rows = [line.split() for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    shown = [(path, kind, int(size) * 1024, int(priority)) for path, kind, size, _, priority in rows]
    assert [(area.path, area.kind, area.size_bytes, area.priority) for area in found] == shown, (found, shown)
    return ", ".join(f"{area.path} {area.size_bytes >> 20} MiB, {area.used_bytes >> 10} KiB used" for area in found)


def _links(pid: str) -> dict[int, str]:
    directory = f"/proc/{pid}/fd"
    return {int(fd): os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory)}


def open_files() -> str:
    """The open files of processes that do nothing are those of /proc/PID/fd."""
    time.sleep(1)
    found: dict[int, dict[int, Any]] = {}
    for file in _ask("files"):
        found.setdefault(file.pid, {})[file.fd] = file
    compared, wrong = 0, []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            before, again = _links(pid), _links(pid)
        except OSError:
            continue
        if int(pid) == os.getpid() or before != again or int(pid) not in found:
            continue
        for fd, target in before.items():
            file = found[int(pid)].get(fd)
            if file is None or (target.startswith("/") and file.path != target):
                wrong.append((pid, fd, target, file))
            compared += 1
    # The daemon and its workers open and close sockets meanwhile.
    assert len(wrong) <= 3, wrong
    assert compared > 50, compared
    return f"{compared} files, {len(wrong)} racing"


SYSTEM = {f.__name__: f for f in (load_average, cpus, cpu_times, swap_areas, open_files)}
