"""What a Client and the Kernels opened over it share: the transport and the deadlines."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Generator
from typing import NoReturn, Protocol

from kvmd.v1.kvm_service_pb2 import DaemonProcess
from libkvm.calls import A, Call, Q
from libkvm.daemon import Daemon
from libkvm.transports import Transport

DEFAULT_TARGET = "unix:/run/kvmd/kvmd.sock"
TIMEOUT = 10.0
LONG_TIMEOUT = 60.0


def default_target() -> str:
    """Answer the target that is used where none is named: KVMD_TARGET, or the system's daemon."""
    return os.environ.get("KVMD_TARGET") or DEFAULT_TARGET


class Attached(Protocol):
    """What must not outlive a session."""

    def drop(self) -> None:
        """Do no more."""


class Session:
    """A connection with its deadlines, in seconds.

    :ivar attached: what is to be dropped when it is closed.
    :ivar timeout: of calls whose work the request bounds.
    :ivar long_timeout: of calls whose work grows with the image: open, processes, log.
    :ivar compress: whether memory may come compressed.
    """

    def __init__(
        self,
        transport: Transport,
        timeout: float = TIMEOUT,
        long_timeout: float = LONG_TIMEOUT,
        *,
        compress: bool = False,
    ) -> None:
        self._transport = transport
        self._owner = os.getpid()
        self.attached: weakref.WeakSet[Attached] = weakref.WeakSet()
        self.timeout = timeout
        self.long_timeout = long_timeout
        self.compress = compress
        self._daemon, self._meeting = Daemon(), threading.Lock()

    @property
    def target(self) -> str:
        """Where the daemon is."""
        return self._transport.target

    @property
    def local(self) -> bool:
        """Whether the daemon runs on this host and sees its files."""
        return self.target.startswith("unix:")

    @property
    def closed(self) -> bool:
        """Whether the connection was closed."""
        return self._transport.closed

    def unary(self, call: Call[Q, A], request: Q, timeout: float | None = None) -> A:
        """Make a call that has one answer."""
        return self._transport.unary(call, request, self.timeout if timeout is None else timeout)

    def stream(self, call: Call[Q, A], request: Q, timeout: float | None = None) -> Generator[A]:
        """Make a call that has many answers."""
        return self._transport.stream(call, request, self.timeout if timeout is None else timeout)

    def met(self, process: DaemonProcess) -> Daemon:
        """Note who answered an open: whatever another daemon had opened over this connection has ended with it."""
        with self._meeting:
            old = self._daemon
            if old.process == process and not old.ended:
                return old
            self._daemon = daemon = Daemon(process)
        old.end()
        if self.local:
            daemon.follow(self._lost)
        return daemon

    def _lost(self, daemon: Daemon) -> None:
        with self._meeting:
            if daemon is self._daemon and not self.closed:
                self._transport.renew()

    def close(self) -> None:
        """Close the connection, and with it every descriptor opened over it. Idempotent."""
        for each in list(self.attached):
            each.drop()
        self._daemon.forget()
        self._transport.close()

    @property
    def ours_to_close(self) -> bool:
        """Whether it is open, and was opened by this process: a child of fork(2) holds its parent's."""
        return not self.closed and self._owner == os.getpid()

    def __del__(self) -> None:
        if self.ours_to_close:
            warnings.warn(f"libkvm.Client of {self.target} was not closed", ResourceWarning, source=self, stacklevel=2)


class Unpicklable:
    """A base for what stands for a connection, which no other process can use."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} stands for a connection and can't be pickled or copied")
