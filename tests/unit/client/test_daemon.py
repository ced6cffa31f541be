"""A daemon's end is noticed, whatever the client is doing, and nobody else's is taken for it."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmd.v1.kvm_service_pb2 import DaemonProcess, OpenRequest
from libkvm import calls
from libkvm import daemon as module
from libkvm.aio import session as aio_session
from libkvm.daemon import Daemon
from libkvm.errors import CancelledError, DeadlineError, Reason, UnavailableError
from libkvm.session import Session
from libkvm.transports import transport
from procs import eventually
from unit.client import facade


class Listener:
    """What hears of an end."""

    def __init__(self) -> None:
        self.heard: list[Daemon] = []

    def hear(self, daemon: Daemon) -> None:
        assert daemon.ended
        self.heard.append(daemon)


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def told(process: subprocess.Popen[bytes]) -> DaemonProcess:
    return DaemonProcess(pid=process.pid, start_time=start_time(process.pid))


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as made:
        yield made
        made.kill()


def test_an_end_is_heard_once(process: subprocess.Popen[bytes]) -> None:
    daemon, listener = Daemon(told(process)), Listener()
    daemon.follow(listener.hear)
    assert not daemon.ended
    end(process)
    eventually(lambda: listener.heard, 5)
    time.sleep(0.05)
    assert listener.heard == [daemon]


def test_one_that_is_not_reaped_yet_has_ended(process: subprocess.Popen[bytes]) -> None:
    daemon, listener = Daemon(told(process)), Listener()
    daemon.follow(listener.hear)
    process.kill()
    eventually(lambda: daemon.ended, 5)


@pytest.mark.parametrize("wrong", [{"pid": 0}, {"pid": -1}, {"start_time": 1}, {"pid": 2**31 - 1}])
def test_a_process_that_is_not_the_one_is_not_followed(process: subprocess.Popen[bytes], wrong: dict[str, int]) -> None:
    said, before = told(process), descriptors()
    for name, value in wrong.items():
        setattr(said, name, value)
    daemon = Daemon(said)
    daemon.follow(Listener().hear)
    assert daemon._pidfd == -1
    assert descriptors() <= before
    end(process)
    time.sleep(0.05)
    assert not daemon.ended


def test_nothing_is_left_of_one_that_nobody_holds(process: subprocess.Popen[bytes]) -> None:
    listener = Listener()
    Daemon(told(process)).follow(listener.hear)  # which starts the thread
    before = descriptors()
    daemon = Daemon(told(process))
    daemon.follow(listener.hear)
    assert descriptors() == before + 1
    daemon.forget()
    daemon.forget()
    del daemon
    gc.collect()
    assert descriptors() == before
    end(process)
    time.sleep(0.05)
    assert not listener.heard


def test_a_number_that_is_used_again_is_not_taken_for_the_old_one(process: subprocess.Popen[bytes]) -> None:
    """As where the thread is told of an end, and somebody else has that pidfd by the time it looks."""
    with subprocess.Popen(["sleep", "1000"]) as other:
        first, listener = Daemon(told(process)), Listener()
        first.follow(listener.hear)
        number = first._pidfd
        first.forget()
        second = Daemon(told(other))
        second.follow(listener.hear)
        assert second._pidfd == number
        assert module._watch._ended(number) is None
        assert not second.ended
        end(other)
        eventually(lambda: second.ended, 5)


def test_a_descriptor_that_the_program_has_closed_is_no_trouble(process: subprocess.Popen[bytes]) -> None:
    daemon = Daemon(told(process))
    daemon.follow(Listener().hear)
    os.close(daemon._pidfd)
    daemon.forget()
    again, listener = Daemon(told(process)), Listener()
    again.follow(listener.hear)
    end(process)
    eventually(lambda: again.ended, 5)


def test_a_listener_may_be_gone(process: subprocess.Popen[bytes]) -> None:
    daemon = Daemon(told(process))
    daemon.follow(Listener().hear)
    end(process)
    eventually(lambda: daemon.ended, 5)


def test_a_child_leaves_its_parents_alone(process: subprocess.Popen[bytes]) -> None:
    daemon, listener = Daemon(told(process)), Listener()
    daemon.follow(listener.hear)
    pid = os.fork()
    if pid == 0:
        daemon.forget()
        again = Daemon(told(process))
        again.follow(listener.hear)
        os.kill(process.pid, signal.SIGKILL)  # Popen would look first whether it is this one's child
        deadline = time.monotonic() + 10
        while not again.ended and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if again.ended and not daemon.ended else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    eventually(lambda: daemon.ended, 5)


# A client of a socket where nobody takes calls: systemd's, while no daemon runs. "aio" is run from another thread.

NLIST = calls.NLIST.request(descriptor="d", names=["jiffies"])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[str]:
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(f"{tmp_path}/kvmd.sock")
        held.listen(64)
        yield f"unix:{tmp_path}/kvmd.sock"


@pytest.fixture(params=["sync", "aio"])
def session(request: pytest.FixtureRequest, place: str) -> Iterator[Any]:
    if request.param == "sync":
        made: Any = Session(transport(place))
    else:
        made = facade.Facade(aio_session.Session(facade.aio_transport(place)))
    yield made
    made.close()


class Asking:
    """A call that somebody makes in a thread of its own, and what comes of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.failure: Exception | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as failure:
            self.failure = failure

    def ended(self, seconds: float) -> Exception | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        return self.failure

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()


def streamed(session: Any) -> None:
    for _ in session.stream(calls.GET_LOG, calls.GET_LOG.request(descriptor="d"), 30):
        pass


CALLS = {"unary": lambda session: session.unary(calls.NLIST, NLIST, 30), "stream": streamed}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_waits_for_another_daemon_hears_of_the_end(
    session: Any, process: subprocess.Popen[bytes], call: str
) -> None:
    session.met(told(process))
    asking = Asking(lambda: CALLS[call](session))
    time.sleep(0.2)
    assert asking.waits
    process.kill()
    failure = asking.ended(1)
    assert isinstance(failure, UnavailableError)
    assert failure.reason is Reason.UNREACHABLE
    assert "open the image again" in failure.message


def test_an_open_goes_on_waiting_for_the_next_one(session: Any, process: subprocess.Popen[bytes]) -> None:
    session.met(told(process))
    began = time.monotonic()
    asking = Asking(lambda: session.unary(calls.OPEN, OpenRequest(), 1))
    time.sleep(0.2)
    process.kill()
    assert isinstance(asking.ended(5), DeadlineError)
    assert 0.9 < time.monotonic() - began < 2


def test_a_session_that_is_closed_cancels_its_calls_as_ever(session: Any, process: subprocess.Popen[bytes]) -> None:
    session.met(told(process))
    asking = Asking(lambda: session.unary(calls.OPEN, OpenRequest(), 30))
    time.sleep(0.2)
    session.close()
    assert isinstance(asking.ended(5), CancelledError)


def test_what_one_opened_ends_when_another_answers(session: Any, process: subprocess.Popen[bytes]) -> None:
    first = session.met(told(process))
    assert session.met(told(process)) is first
    other = DaemonProcess(pid=os.getpid(), start_time=start_time(os.getpid()))
    second = session.met(other)
    assert (first.ended, second.ended) == (True, False)
    end(process)
    time.sleep(0.05)
    assert session.met(other) is second


def test_of_another_host_only_another_answer_tells(process: subprocess.Popen[bytes]) -> None:
    session = Session(transport("unix:/nowhere"))
    session._transport.target = "dns:///elsewhere:1"
    daemon = session.met(told(process))
    end(process)
    time.sleep(0.05)
    assert not daemon.ended
    session.met(DaemonProcess(pid=1, start_time=1))
    assert daemon.ended
    session.close()
