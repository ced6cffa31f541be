"""The daemon under a service manager: LISTEN_FDS, sd_notify, watchdog, idle exit; the manager is this test.

Sources: sd_listen_fds(3), sd_notify(3), systemd.service(5).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import libkvm
from images import fixture
from procs import eventually, workers

# As systemd does it between fork and exec: the socket is descriptor 3, and LISTEN_PID is the pid that stays.
EXEC = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "kvmd.socket"}
if "WATCHDOG_USEC" in os.environ:
    os.environ["WATCHDOG_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "kvmd", *sys.argv[2:]])
"""
START = 30.0


@dataclass
class Unit:
    """A socket unit and its service; each message of the service's is kept with the time it came at."""

    folder: Path
    listening: socket.socket
    notify: socket.socket
    process: subprocess.Popen[bytes] | None = None
    heard: list[tuple[float, str]] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"unix:{self.folder}/kvmd.sock"

    def start(self, *words: str, config: str = "", watchdog: float | None = None) -> None:
        settings = self.folder / "kvmd.toml"
        settings.write_text(config)
        environ = dict(os.environ, NOTIFY_SOCKET=f"{self.folder}/notify")
        if watchdog is not None:
            environ["WATCHDOG_USEC"] = str(int(watchdog * 1e6))
        fd = self.listening.fileno()
        command = [sys.executable, "-c", EXEC, str(fd), "--listen", self.target, "--config", str(settings), *words]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environ, pass_fds=[fd], stderr=log)

    def activate(self, *words: str, **more: object) -> None:
        """Start the service when somebody connects, as the socket unit does."""
        assert select.select([self.listening], [], [], START)[0]
        self.start(*words, **more)

    def listen(self) -> None:
        """Take in what the service said since."""
        while select.select([self.notify], [], [], 0)[0]:
            self.heard.append((time.monotonic(), self.notify.recv(4096).decode()))

    def count(self, message: str) -> int:
        self.listen()
        return sum(message in text.split("\n") for _, text in self.heard)

    def wait(self, message: str, times: int = 1, seconds: float = START) -> float:
        return eventually(lambda: self.count(message) >= times, seconds)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ended(self, seconds: float = START) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def kill(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listening.bind(f"{tmp_path}/kvmd.sock")
        listening.listen(64)
        notify = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        notify.bind(f"{tmp_path}/notify")
        made = Unit(tmp_path, listening, notify)
        try:
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.process.kill()
                made.process.wait()


def answers(target: str) -> bool:
    """Whether a client is answered: of a file that isn't there, that it isn't."""
    with libkvm.connect(target) as client:
        try:
            client.open(corefile="not-there")
        except libkvm.SourceNotFoundError:
            return True
        except libkvm.UnavailableError:
            return False
    raise AssertionError("a file that is not there was opened")


def test_a_connection_starts_it_and_is_answered(unit: Unit) -> None:
    """Who connects first waits in the socket for the service; READY=1 comes when it is answered."""
    answered: list[bool] = []
    thread = threading.Thread(target=lambda: answered.append(eventually(lambda: answers(unit.target), START) > 0))
    thread.start()
    unit.activate()
    unit.wait("READY=1")
    thread.join()
    assert answered == [True]
    unit.kill(signal.SIGTERM)
    assert unit.ended() == 0
    assert unit.count("STOPPING=1") == 1
    assert Path(f"{unit.folder}/kvmd.sock").exists()  # it is the manager's


def test_ready_only_when_it_answers(unit: Unit) -> None:
    unit.start()
    while not unit.count("READY=1"):
        assert unit.process.poll() is None, unit.log()
        time.sleep(0.001)
    assert answers(unit.target)  # at once
    assert "STATUS=serving" in unit.heard[0][1]


def test_starts_before_a_queue_that_would_fill_it(unit: Unit) -> None:
    """More clients wait in the socket than there are places: they don't get between the start and its self-test."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(f"{unit.folder}/kvmd.sock")
        unit.activate(config="[limits]\nconnections = 4\n")
        unit.wait("READY=1")
    eventually(lambda: answers(unit.target), START)


def test_no_ready_where_it_can_not_serve(unit: Unit) -> None:
    unit.start("--listen", "unix:/proc/none/kvmd.sock")
    assert unit.ended() == 1
    assert unit.count("READY=1") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a worker's environment is root's to read")
def test_workers_can_not_speak_for_it(unit: Unit) -> None:
    unit.start(watchdog=60)
    unit.wait("READY=1")

    def worker() -> int:
        """One that is past its exec: before that it shows the daemon's environment as it was at the start."""
        for pid in workers(unit.process.pid):
            with contextlib.suppress(OSError):
                if b"kvmd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return 0

    eventually(worker, START)
    environment = Path(f"/proc/{worker()}/environ").read_bytes()
    assert b"PATH=" in environment
    assert not any(name in environment for name in (b"NOTIFY_SOCKET", b"WATCHDOG_", b"LISTEN_"))


def test_the_socket_outlives_restarts(unit: Unit) -> None:
    """Of two services in turn, each answers; who connects in between waits for the second."""
    unit.start()
    unit.wait("READY=1")
    assert answers(unit.target)
    unit.kill(signal.SIGKILL)
    unit.ended()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(f"{unit.folder}/kvmd.sock")
        waiting.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))  # RFC 9113, 3.4
        unit.activate()
        unit.wait("READY=1", 2)
        waiting.settimeout(START)
        assert waiting.recv(9)[3] == 4  # SETTINGS: the second one has taken it
    assert answers(unit.target)


def _reads(kernel: libkvm.Kernel, physical: int) -> bool:
    try:
        return kernel.read(physical, 5, physical=True) == b"Linux"
    except libkvm.UnavailableError:
        return False


@pytest.mark.parametrize("linked", [False, True], ids=["by the daemon", "directly"])
def test_killed_and_started_again_its_clients_are_answered_within_five_seconds(unit: Unit, linked: bool) -> None:
    """The one that is there hears of it within a second, and goes on as soon as it opens again."""
    dump = fixture("qemu/vmcore.kdump").path
    words = ("--dump-dir", str(dump.parent))
    unit.start(*words)
    unit.wait("READY=1")
    with libkvm.connect(unit.target) as client:
        kernel = client.open(corefile=dump)
        address = kernel.symbol("linux_banner").value
        physical = address - 0xFFFFFFFF80000000 + (kernel.info.phys_base or 0)  # which is read anew each time
        assert not linked or _reads(kernel, physical)
        unit.kill(signal.SIGKILL)
        began = time.monotonic()
        while _reads(kernel, physical):
            assert time.monotonic() - began < 1
        unit.ended()
        unit.start(*words)
        while True:
            with contextlib.suppress(libkvm.UnavailableError), client.open(corefile=dump) as again:
                assert again.read(address, 5) == b"Linux"
                break
        assert time.monotonic() - began < 5


def _failure(call: Callable[[], object]) -> libkvm.KvmError:
    with pytest.raises(libkvm.UnavailableError) as caught:
        call()
    return caught.value


def test_an_idle_client_of_a_killed_daemon_hears_of_it_before_there_is_another(unit: Unit) -> None:
    """Nobody takes calls from the socket yet; no call waits for who will, and would know nothing of the descriptor."""
    dump = fixture("qemu/vmcore.kdump").path
    words = ("--dump-dir", str(dump.parent))
    unit.start(*words)
    unit.wait("READY=1")
    with libkvm.connect(unit.target) as client, libkvm.connect(unit.target) as second:
        kernel, other = client.open(corefile=dump), second.open(corefile=dump)
        address = kernel.symbol("linux_banner").value
        unit.kill(signal.SIGKILL)
        unit.ended()
        began = time.monotonic()
        for call in (
            lambda: kernel.symbol("linux_banner"),
            lambda: kernel.read(address + (1 << 20), 8),
            lambda: kernel.read(0, 8, physical=True),
            kernel.processes,
            lambda: list(kernel.log()),
            lambda: list(kernel.stream(address, 4 << 20)),
            lambda: kernel.readv([(0, 8)], physical=True),
            lambda: other.read(0, 8, physical=True),
        ):
            failure = _failure(call)
            assert failure.reason.value == "UNREACHABLE"
            assert "open the image again" in failure.message
        other.close()
        assert time.monotonic() - began < 1
        unit.start(*words)
        with client.open(corefile=dump) as again:
            assert again.symbol("linux_banner").value == address
            assert _failure(kernel.processes).reason.value == "UNREACHABLE"
            kernel.close()
            assert again.read(address, 5) == b"Linux"


def test_the_watchdog_is_fed_by_a_call_through_the_public_socket(unit: Unit) -> None:
    """Pings come twice a period, stop while no call gets through, and come again when one does."""
    unit.start(watchdog=1.0)
    unit.wait("READY=1")
    before = unit.count("WATCHDOG=1")
    began = time.monotonic()
    unit.wait("WATCHDOG=1", before + 4)
    assert time.monotonic() - began > 1.0  # no faster than every half second
    private = unit.folder / "kvmd.sock.private"
    private.rename(unit.folder / "elsewhere")  # the front reaches grpc no more, and so does nobody
    eventually(lambda: any("self-check failed" in text for _, text in _all(unit)), START)
    silent = unit.count("WATCHDOG=1")
    time.sleep(2.0)
    assert unit.count("WATCHDOG=1") == silent  # a period long: now systemd would end it
    (unit.folder / "elsewhere").rename(private)
    unit.wait("WATCHDOG=1", silent + 2)
    assert "the self-check passes again" in unit.log()
    assert unit.process.poll() is None


def test_who_takes_all_places_starves_no_watchdog(unit: Unit) -> None:
    """The daemon's own calls need no place: or a client that fills them would have it restarted."""
    unit.start(config="[limits]\nconnections = 2\ncalls_per_uid = 1\n", watchdog=1.0)
    unit.wait("READY=1")
    taken = []
    for _ in range(24):  # and those that are let in to hear that there is no place
        taken.append(socket.socket(socket.AF_UNIX))
        taken[-1].connect(f"{unit.folder}/kvmd.sock")
    before = unit.count("WATCHDOG=1")
    unit.wait("WATCHDOG=1", before + 4)
    assert "self-check failed" not in unit.log()
    for sock in taken:
        sock.close()


def test_the_watchdog_hungers_when_the_daemon_hangs(unit: Unit) -> None:
    """A process that stands still feeds nothing: no thread of its own does so in its place."""
    unit.start(watchdog=1.0)
    unit.wait("WATCHDOG=1", 2)
    unit.kill(signal.SIGSTOP)
    time.sleep(0.2)
    before = unit.count("WATCHDOG=1")
    time.sleep(1.5)
    assert unit.count("WATCHDOG=1") == before
    unit.kill(signal.SIGCONT)
    unit.wait("WATCHDOG=1", before + 1)


def _all(unit: Unit) -> list[tuple[float, str]]:
    unit.listen()
    return unit.heard


def test_leaves_when_nobody_is_there(unit: Unit) -> None:
    unit.start("--idle-exit", "1", watchdog=0.5)  # whose calls count for nothing
    unit.wait("READY=1")
    began = time.monotonic()
    with libkvm.connect(unit.target) as client, pytest.raises(libkvm.SourceNotFoundError):
        client.open(corefile="not-there")
    assert unit.ended() == 0
    assert time.monotonic() - began >= 1
    assert unit.count("STOPPING=1") == 1
    with socket.socket(socket.AF_UNIX) as waiting:  # the next one is not lost
        waiting.connect(f"{unit.folder}/kvmd.sock")
        unit.activate()
        unit.wait("READY=1", 2)


def test_stays_while_somebody_is_there(unit: Unit) -> None:
    unit.start("--idle-exit", "0.5")
    unit.wait("READY=1")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{unit.folder}/kvmd.sock")
        time.sleep(2.5)
        assert unit.process.poll() is None, unit.log()
    assert unit.ended() == 0


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "x"])
def test_idle_exit_wants_a_time(word: str) -> None:
    command = [sys.executable, "-m", "kvmd", "--idle-exit", word]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START)
    assert done.returncode == 2
    assert "is not a time in seconds" in done.stderr


def test_reload_is_told(unit: Unit) -> None:
    """RELOADING=1, then READY=1 with what came of it."""
    unit.start()
    unit.wait("READY=1")
    unit.kill(signal.SIGHUP)
    unit.wait("READY=1", 2)
    (unit.folder / "kvmd.toml").write_text("[listen]\nunx = 1\n")
    unit.kill(signal.SIGHUP)
    unit.wait("READY=1", 3)
    texts = [text for _, text in unit.heard]
    assert [text.split("\n")[0] for text in texts] == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]
    assert "MONOTONIC_USEC=" in texts[1]
    assert "kvmd.toml:2" in texts[4]
    assert answers(unit.target)
