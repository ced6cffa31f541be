"""What the checks of the service stand on: commands, clients of other users, drop-ins, the journal."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PYTHON = "/usr/lib/kvmd/current/bin/python"
CONFIG = Path("/etc/kvmd/kvmd.toml")
DROP_IN = Path("/run/systemd/system/kvmd.service.d")
ACTIVATION = 90.0  # an emulator is ten to thirty times slower
RULES = """
[[policy]]
subjects = ["group:kvmd"]
images = ["live", "live:mem", "dump:/var/crash/*"]
verbs = ["info", "symbols", "read", "processes", "arguments", "environment", "files", "log"]
"""
WRITERS = RULES.replace('"log"]', '"log", "write"]') + "[live]\nwrites = true\n"
# What a client runs: the answer, or the reason it has none. A daemon that starts is waited for.
CLIENT = """
import sys, time, libkvm
def ask():
    with libkvm.connect(timeout=60, long_timeout=60) as client, client.open(**OPEN) as kernel:
        WORK
end = time.monotonic() + PATIENCE
while True:
    try:
        ask()
    except libkvm.UnavailableError as failure:
        if time.monotonic() < end: continue
        print(failure.reason.value, failure.message)
    except libkvm.KvmError as failure:
        print(failure.reason.value, failure.message, 'request=' + failure.metadata.get('request', ''))
    break
"""
# Holds a descriptor, and once it is told to reads until that fails.
HOLDER = """
        print('open', flush=True); sys.stdin.readline(); began = time.monotonic()
        while True:
            try: kernel.read(kernel.symbol('linux_banner').value, 8)
            except libkvm.KvmError as failure:
                print(failure.reason.value, type(failure).__name__, time.monotonic() - began, flush=True)
                break
"""
# Opens anew until that works.
AGAIN = """
        while True:
            try:
                with client.open() as again: print(again.read(again.symbol('linux_banner').value, 5))
            except libkvm.UnavailableError: continue
            print(time.monotonic() - began, flush=True)
            sys.exit()
"""
READ = "print('OK', kernel.read(kernel.symbol('linux_banner').value, 13))"


def run(*words: str, good: bool = True, **more: object) -> str:
    """A command's output, standard error included; it must succeed if ``good``."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, **more)
    assert done.returncode == 0 or not good, f"{' '.join(words)}: {done.returncode}\n{done.stdout}"
    return done.stdout.strip()


def show(name: str, unit: str = "kvmd.service") -> str:
    """A property of a unit."""
    return run("systemctl", "show", "-P", name, unit)


def until(what: Callable[[], bool], seconds: float = ACTIVATION) -> float:
    """How long it took until something was so."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, f"not so after {seconds} s\n{journal()}"
        time.sleep(0.02)
    return time.monotonic() - began


def journal(lines: int = 25) -> str:
    """The end of the service's log."""
    return run("journalctl", "--no-pager", "-n", str(lines), "-u", "kvmd.service", "-u", "kvmd-dumps.service")


def client(user: str, work: str = READ, patience: float = ACTIVATION, **arguments: object) -> str:
    """What a user's client prints."""
    code = CLIENT.replace("OPEN", repr(arguments)).replace("WORK", work).replace("PATIENCE", str(patience))
    return run("runuser", "-u", user, "--", PYTHON, "-c", code)


def records(*matches: str) -> list[dict[str, str]]:
    """The audit record's entries in the journal."""
    run("journalctl", "--sync")
    lines = run("journalctl", "-o", "json", "-u", "kvmd.service", *matches).splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@contextmanager
def holding(work: str) -> Iterator[tuple[Callable[[], None], Callable[[], str]]]:
    """A client of alice's that has opened the kernel: what tells it to go on, and what gives its next line."""
    code = CLIENT.replace("OPEN", "{}").replace("WORK", work).replace("PATIENCE", "60")
    command = ["runuser", "-u", "alice", "--", PYTHON, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def say() -> None:
            process.stdin.write("\n")
            process.stdin.flush()

        def hear() -> str:
            return process.stdout.readline().strip()

        assert hear() == "open"
        yield say, hear


@contextmanager
def drop_in(text: str) -> Iterator[None]:
    """The service with a drop-in, stopped before and after; a connection starts it."""
    DROP_IN.mkdir(parents=True, exist_ok=True)
    file = DROP_IN / "check.conf"
    file.write_text(text)
    stop()
    try:
        yield
    finally:
        file.unlink()
        stop()


def stop() -> None:
    run("systemctl", "daemon-reload")
    run("systemctl", "stop", "kvmd.service")
