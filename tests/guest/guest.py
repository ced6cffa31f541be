"""What the checks in the guest stand on: a daemon, processes of other users, loads, and requests to the host."""

from __future__ import annotations

import os
import pickle
import pwd
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from libkvm import KvmError, connect
from libkvm.client import Client

SOCKET = "/run/kvmd/kvmd.sock"
TARGET = f"unix:{SOCKET}"
CONFIG = """
[dumps]
directories = ["/var/crash"]

[limits]
call_deadline = 120.0
worker_timeout = 120.0  # an emulator is ten to thirty times slower

[live]
writes = true

[[policy]]
subjects = ["user:alice"]
images = ["live", "live:mem"]
verbs = ["info", "symbols", "read", "processes", "arguments", "environment", "files", "log", "write"]

[[policy]]
subjects = ["user:bob"]
images = ["live", "live:mem"]
verbs = ["info", "symbols", "read", "processes", "arguments"]
"""

T = TypeVar("T")


class Daemon:
    """kvmd as root, on its usual socket."""

    def __init__(self, directory: Path) -> None:
        config = directory / "kvmd.toml"
        config.write_text(CONFIG)
        Path("/var/crash").mkdir(exist_ok=True)
        Path(SOCKET).parent.mkdir(exist_ok=True)
        self.log = directory / "kvmd.log"
        command = [str(Path(sys.executable).parent / "kvmd"), "--config", str(config)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log)
        self._await()

    def _await(self) -> None:
        deadline = time.monotonic() + 60
        while not Path(SOCKET).exists() or b"ready" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"kvmd did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def stop(self) -> int:
        """Stop it and return its exit status."""
        self.process.terminate()
        return self.process.wait(30)


def as_user(name: str, work: Callable[[Client], T]) -> T:
    """What a function returns in a process of another user's, who has connected to the daemon; what it raises, too."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(_outcome(name, work), pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    if not data:
        raise RuntimeError(f"{name}'s process died")
    good, outcome = pickle.loads(data)
    if not good:
        raise outcome
    return outcome


def _outcome(name: str, work: Callable[[Client], T]) -> tuple[bool, object]:
    try:
        user = pwd.getpwnam(name)
        os.initgroups(name, user.pw_gid)
        os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
        os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
        with connect(TARGET, timeout=120, long_timeout=240) as client:
            _reach(client)
            return True, work(client)
    except Exception as failure:
        try:
            pickle.loads(pickle.dumps(failure))
        except Exception:
            return False, RuntimeError(traceback.format_exc())
        return False, failure


def _reach(client: Client) -> None:
    """Wait until the daemon answers, which takes gRPC's patience and more in an emulator with other work to do."""
    for _ in range(30):
        try:
            client.open(corefile="/var/crash/none").close()
        except KvmError as failure:
            if failure.reason.value != "UNREACHABLE":
                return
        time.sleep(0.2)


@contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that start others, which end at once."""
    command = ["/bin/sh", "-c", "while :; do /bin/true; (exit 0) & /bin/true; wait; done"]
    loads = [subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for process in loads:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def zoo() -> Iterator[None]:
    """Processes of both users with unusual arguments and environments."""
    argv: tuple[list[bytes], ...] = (
        [b"sleep", b"1000"],
        [b"", b"1000"],
        [b"two words", b"1000"],
        [b"gr\xc3\xbc\xc3\x9f \xff\xfe", b"1000"],
        [b"x" * 30000, b"1000"],
    )
    environments: tuple[dict[bytes, bytes], ...] = ({}, {b"EMPTY": b""}, {b"LONG": b"y" * 20000, b"\xff": b"\xfe"})
    names = ("alice", "bob", "alice", "bob", "alice")
    animals = [
        subprocess.Popen(args, executable="/bin/sleep", env=environments[number % 3], user=names[number])
        for number, args in enumerate(argv)
    ]
    time.sleep(1)  # until each has started its program
    try:
        yield
    finally:
        for animal in animals:
            animal.kill()
            animal.wait()


def pids() -> set[int]:
    """The processes that /proc shows."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def open_devmem() -> None:
    """Have the host lift STRICT_DEVMEM from this kernel."""
    subprocess.run(["guest-host", "open-devmem"], check=True)
