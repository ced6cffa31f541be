"""One relayed connection: the client's socket, grpc's socket, and a pump each way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Callable

from kvmd.front.peers import Connection
from kvmd.front.pump import Pump
from kvmd.front.tls import TlsStream
from kvmd.front.watch import HangupWatch

_RETRY = 0.01
_ATTEMPTS = 500


class Link:
    """Relays a connection to grpc's private socket until either side goes or the connection is closed.

    Owns both sockets and the pidfd. Whoever ends it does so by :meth:`Connection.close`, whose callbacks do the rest.
    """

    __slots__ = (
        "_client", "_connection", "_grpc", "_loop", "_patience", "_pidfd", "_pumps", "_timer", "_toll", "_watch"
    )  # fmt: skip

    def __init__(  # noqa: PLR0913, PLR0917 - what a link is made of
        self,
        connection: Connection,
        client: socket.socket | TlsStream,
        pidfd: int | None,
        watch: HangupWatch,
        patience: float,
        toll: Callable[[int], float] | None = None,
    ) -> None:
        """Take over the client's socket and pidfd; nothing is relayed before :meth:`open`.

        :param patience: seconds that a client may leave what there is for it untouched.
        :param toll: of what the client sends: see :class:`~kvmd.front.pump.Pump`.
        :raises OSError: no descriptor, or no memory, for another socket.
        """
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._client = client
        self._pidfd = pidfd
        self._watch = watch
        self._patience = patience
        self._toll = toll
        self._timer: asyncio.TimerHandle | None = None
        self._pumps: tuple[Pump, ...] = ()
        self._grpc = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.on_close(self._release)

    def open(self, private_path: str) -> None:
        """Connect to grpc's private socket and start to relay.

        :raises OSError: grpc isn't there.
        """
        # Nobody who speaks HTTP/2 over TLS closes one direction only.
        watch = self._watch.add_stream if isinstance(self._client, TlsStream) else self._watch.add_socket
        watch(self._client.fileno(), self._connection.close)
        if self._pidfd is not None:
            # A child of the client may hold the socket, and so keep it open, after the client has gone:
            # what the daemon granted to a process isn't inherited.
            self._watch.add_process(self._pidfd, self._connection.close)
        self._grpc.bind(f"\0{self._connection.token}")
        self._connect(private_path, _ATTEMPTS)

    def _connect(self, private_path: str, attempts: int) -> None:
        """Connect; a Unix socket does so at once, or says EAGAIN while the listener's queue is full (unix(7))."""
        try:
            self._grpc.connect(private_path)
        except BlockingIOError:
            if not attempts:
                raise
            self._timer = self._loop.call_later(_RETRY, self._reconnect, private_path, attempts - 1)
            return
        inward = Pump(self._client, self._grpc, self._ended, toll=self._toll)
        outward = Pump(self._grpc, self._client, self._ended, self._waiting)
        self._pumps = (inward, outward)
        for pump in self._pumps:
            pump.start()

    def _reconnect(self, private_path: str, attempts: int) -> None:
        self._timer = None
        try:
            self._connect(private_path, attempts)
        except OSError:
            self._connection.close()

    def _ended(self, pump: Pump) -> None:
        """Pass a half-close on; close altogether once nothing more can come of the connection."""
        if all(each.ended for each in self._pumps):
            self._connection.close()
        elif pump.broken is not None:
            # grpc takes no more, but what it said last (an answer, GOAWAY) may still lie between it and the client.
            if pump.broken is pump.source or pump.broken is self._client:
                self._connection.close()
        elif _hung_up(pump.source):
            self._connection.close()
        else:
            with contextlib.suppress(OSError):
                pump.target.shutdown(socket.SHUT_WR)

    def _waiting(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._check_patience)

    def _check_patience(self) -> None:
        """Cut a client that took nothing for too long; the timer is left running while it does take some."""
        self._timer = None
        outward = self._pumps[1]
        if not outward.waiting:
            return
        rest = outward.progress + self._patience - self._loop.time()
        if rest <= 0:
            self._connection.close()
        else:
            self._timer = self._loop.call_later(rest, self._check_patience)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for pump in self._pumps:
            pump.stop()
        self._watch.remove(self._client.fileno())
        if self._pidfd is not None:
            self._watch.remove(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        _close(self._grpc.close)
        _close(self._client.close)


def _hung_up(sock: socket.socket | TlsStream) -> bool:
    """Whether the other end is closed, and not just shut down for writing (poll(2), POLLHUP)."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def _close(close: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):
        close()
