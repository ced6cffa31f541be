"""Checks of processes: against /proc, while others start and end."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from guest import as_user, load, pids, zoo
from libkvm import KvmError
from libkvm.client import Client

ROUNDS = 50


def process_list() -> str:
    """The list is that of /proc, fifty times, while processes start and end."""
    return as_user("alice", _compare_lists)


def _compare_lists(client: Client) -> str:
    began, spent, racing, most = time.monotonic(), 0.0, 0, 0
    with client.open() as kernel, load(2):
        for _ in range(ROUNDS):
            before = pids()
            start = time.monotonic()
            found = [process.pid for process in kernel.processes()]
            spent += time.monotonic() - start
            after = pids()
            assert found == sorted(set(found)), "a pid is listed twice, or out of turn"
            # What was there all the time is listed.
            missing = (before & after) - set(found)
            assert not missing, f"missing: {missing}"
            # What is listed was there at some time: then, or it came and went in between, and has a new pid.
            unknown = set(found) - before - after
            assert all(pid > min(before) for pid in unknown), unknown
            racing += len(set(found) ^ (before & after))
            most = max(most, len(found))
    took = time.monotonic() - began
    each = spent / ROUNDS * 1e3
    return f"{ROUNDS} lists of up to {most} in {took:.1f} s ({each:.0f} ms each), {racing} racing entries"


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def records() -> str:
    """Each record says what /proc/PID/status says."""

    def read(client: Client) -> list[Any]:
        with client.open() as kernel:
            return kernel.processes()

    compared, wrong = 0, []
    for process in as_user("alice", read):
        with suppress(FileNotFoundError, ProcessLookupError):
            status = _status(process.pid)
            uid, gid = status["Uid"].split(), status["Gid"].split()
            name = status["Name"]
            if process.kernel_thread:  # /proc adds what a worker works at, and gives long names whole
                name = process.comm if name.startswith(process.comm) else name
            shown = (name, status["PPid"], status["Tgid"], uid[:2], gid[:2])
            ids = [[str(process.uid), str(process.euid)], [str(process.gid), str(process.egid)]]
            if shown != (process.comm, str(process.ppid), str(process.tgid), *ids):
                wrong.append((shown, process))
            compared += 1
    assert not wrong, wrong
    assert compared > 20
    return f"{compared} processes"


def _strings(pid: int, name: str) -> list[str] | None:
    """A process's strings as /proc shows them; None if it is gone."""
    try:
        data = Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = data.split(b"\0")
    return [os.fsdecode(value) for value in (values[:-1] if values[-1] == b"" else values)]


def _compare_strings(name: str, found: dict[int, list[str] | str]) -> str:
    wrong, compared, none = [], 0, 0
    for pid, values in found.items():
        shown = _strings(pid, name)
        if shown is None:
            continue
        if values == "NO_USER_MEMORY" and not shown:
            none += 1
        elif values != shown:
            wrong.append((pid, values, shown))
        else:
            compared += 1
    assert not wrong, wrong
    assert compared > 8, compared
    return f"{compared} processes equal, {none} have none"


def _all(client: Client, call: str) -> dict[int, list[str] | str]:
    found: dict[int, list[str] | str] = {}
    with client.open() as kernel:
        for process in kernel.processes():
            try:
                found[process.pid] = getattr(kernel, call)(process)
            except KvmError as failure:
                found[process.pid] = failure.reason.value
    return found


def argv() -> str:
    """Every process's arguments are those of /proc/PID/cmdline."""
    with zoo():
        return _compare_strings("cmdline", as_user("alice", lambda client: _all(client, "argv")))


def environ() -> str:
    """Every process's environment is that of /proc/PID/environ."""
    with zoo():
        return _compare_strings("environ", as_user("alice", lambda client: _all(client, "environ")))


PROCESSES = {f.__name__: f for f in (process_list, records, argv, environ)}
