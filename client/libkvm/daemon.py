"""Whether the daemon that opened something is there still: one thread watches those of all clients in this process.

Descriptors end with their daemon. A client that makes no call meanwhile doesn't hear of it from gRPC, which connects
again at the next call; where systemd holds the socket, that waits for the next daemon, to which they mean nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections.abc import Callable

from kvmd.v1.kvm_service_pb2 import DaemonProcess


class Daemon:
    """A daemon's process, as long as somebody holds this.

    :ivar process: what it said of itself; 0 and 0 if nothing.
    :ivar ended: whether it has ended; of one of another host, or one that can't be seen, that is never known.
    """

    def __init__(self, process: DaemonProcess | None = None) -> None:
        self.process = process or DaemonProcess()
        self.ended = False
        self._heard: weakref.WeakMethod[Callable[[Daemon], object]] | None = None
        self._pidfd, self._owner = -1, os.getpid()

    def follow(self, heard: Callable[[Daemon], object]) -> None:
        """Have its end noticed, if it is one that can be seen from here.

        :param heard: the method, held weakly, that is called then, in another thread, when ``ended`` is set already.
        """
        if (pidfd := _pidfd(self.process)) is not None:
            self._heard, self._pidfd = weakref.WeakMethod(heard), pidfd
            _watch.add(pidfd, self)

    def end(self) -> None:
        """Note that it has ended."""
        self.ended = True
        self.forget()
        if self._heard is not None and (heard := self._heard()) is not None:
            heard(self)

    def forget(self) -> None:
        """Look at it no more. Idempotent."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd < 0:
            return
        with contextlib.suppress(OSError):  # a program may have closed all descriptors that it doesn't know
            if self._owner == os.getpid():
                _watch.remove(pidfd)
            else:  # in a child of fork(2)
                os.close(pidfd)

    def __del__(self) -> None:
        self.forget()


def _pidfd(process: DaemonProcess) -> int | None:
    """A pidfd, if the process of that number is the one that is meant: not another host's, or container's."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except (OSError, OverflowError):
        return None
    try:
        with open(f"/proc/{process.pid}/stat", "rb") as file:
            # Field 2, the name, may hold spaces and parentheses; the last ")" ends it (proc_pid_stat(5)).
            same = int(file.read().rpartition(b")")[2].split()[19]) == process.start_time
    except (OSError, ValueError, IndexError):
        same = False
    if not same:
        os.close(pidfd)
        return None
    return pidfd


class _Watch:
    """The thread, which is made when it is first needed, and its table."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a Daemon may become garbage, and be removed, anywhere
        self._epoll: select.epoll | None = None
        self._daemons: dict[int, weakref.ref[Daemon]] = {}

    def add(self, pidfd: int, daemon: Daemon) -> None:
        """Watch a process."""
        with self._lock:
            if self._epoll is None:
                self._epoll = select.epoll()
                threading.Thread(target=self._run, args=(self._epoll,), name="libkvm-daemons", daemon=True).start()
            self._daemons[pidfd] = weakref.ref(daemon)
            self._epoll.register(pidfd, select.EPOLLIN)

    def remove(self, pidfd: int) -> None:
        """Watch it no more, and close its pidfd."""
        with self._lock:
            self._daemons.pop(pidfd, None)
            try:
                if self._epoll is not None:
                    self._epoll.unregister(pidfd)
            finally:
                os.close(pidfd)

    def _run(self, epoll: select.epoll) -> None:
        with contextlib.suppress(OSError):  # the same
            while True:
                for pidfd, _ in epoll.poll():
                    if (daemon := self._ended(pidfd)) is not None:
                        daemon.end()

    def _ended(self, pidfd: int) -> Daemon | None:
        """Whose end it is: the number may mean another daemon by now, or none."""
        with self._lock:
            found = self._daemons.get(pidfd)
            if found is None or not _readable(pidfd):
                return None
            return found()


def _readable(pidfd: int) -> bool:
    """Whether a process has ended (pidfd_open(2))."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


_watch = _Watch()


def _after_fork() -> None:
    global _watch  # noqa: PLW0603 - the thread is the parent's, and so is the epoll instance
    _watch = _Watch()


os.register_at_fork(after_in_child=_after_fork)
