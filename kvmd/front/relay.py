"""The front: accepts clients, learns who they are, and relays each to grpc's private socket under its token."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from kvmd.access.limits import Flow, Quota
from kvmd.errors import KvmError
from kvmd.front.link import Link
from kvmd.front.peer import Peer, credentials
from kvmd.front.peers import Connection, Peers
from kvmd.front.tls import TlsStream
from kvmd.front.watch import HangupWatch

_log = logging.getLogger(__name__)

Greet = Callable[[socket.socket, Any], None]

_BURST = 64  # clients accepted before other work gets its turn
_PAUSE = 0.1
# Clients beyond the limit of connections that are let in to hear of it: of one owner, of all, and for how long.
_POLITE, _POLITE_TO_ALL, _POLITE_SECONDS = 2, 16, 5.0
_NOT_OURS = (errno.ECONNABORTED, errno.EPERM, errno.EPROTO)  # accept(2): this client failed, the next may not
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Front:
    """Relays clients of listening sockets to grpc's private socket.

    One event loop, no threads; everything is called on the loop's thread.
    """

    def __init__(  # noqa: PLR0913 - what a front is made of, most of it by keyword
        self,
        peers: Peers,
        private_path: str,
        quota: Quota,
        *,
        flow: Flow | None = None,
        patience: float = 30.0,
        on_connect: Callable[[Connection], object] = lambda connection: None,
        own_pid: int = 0,
    ) -> None:
        """Make a front; must be called within a running loop.

        :param peers: the table that connections are entered into.
        :param private_path: where grpc listens, in a directory that only the daemon can enter.
        :param quota: of connections; each takes four descriptors.
        :param flow: of what clients send; None: as much as they like.
        :param patience: seconds after which a client that takes nothing of what there is for it is cut.
        :param on_connect: is told of every client that has come in.
        :param own_pid: the process whose connections count as nobody's: the daemon's, which asks itself how it does.
        """
        self._loop = asyncio.get_running_loop()
        self._peers = peers
        self._private_path = private_path
        self._quota = quota
        self._flow = flow
        self._patience = patience
        self._on_connect = on_connect
        self._own_pid = own_pid
        self._turned_away = Counter[str]()
        self._watch = HangupWatch()
        self._listeners: dict[socket.socket, Greet] = {}
        self._paused: asyncio.TimerHandle | None = None
        self._refused = 0

    @property
    def refused(self) -> int:
        """How many clients were turned away since the start: over a limit, gone, or for want of descriptors."""
        return self._refused

    def serve(self, listening: socket.socket, *, admin: bool = False, greet: Greet | None = None) -> None:
        """Begin to accept; the front closes the socket in :meth:`stop_accepting`.

        :param admin: whether who comes through here may ask the admin service.
        :param greet: takes each client of a TCP socket, and brings it back by :meth:`admit` when it is known who it
            is. Clients of a Unix socket are known at once.
        """
        listening.setblocking(False)
        if (greet is None) != (listening.family == socket.AF_UNIX):
            raise ValueError("TCP without TLS, or TLS over a Unix socket")
        self._listeners[listening] = greet or partial(self._admit_local, admin=admin)
        if self._paused is None:
            self._loop.add_reader(listening, self._accept, listening)

    def stop_accepting(self) -> None:
        """Close the listening sockets; connections go on. A second call does nothing."""
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        for listening in self._listeners:
            self._loop.remove_reader(listening)
            listening.close()
        self._listeners.clear()

    def close(self) -> None:
        """Stop accepting and close every connection, which runs its callbacks. A second call does nothing."""
        self.stop_accepting()
        for connection in self._peers:
            connection.close()
        self._watch.close()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_BURST):
            try:
                client, address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failure:
                if failure.errno in _NOT_OURS:
                    continue
                self._pause(failure)
                return
            try:
                self._listeners[listening](client, address)
            except OSError as failure:
                self._refused += 1
                client.close()
                if failure.errno in _EXHAUSTED:
                    self._pause(failure)
                    return
                _log.info("a client was turned away: %s", failure.strerror or failure)

    def _admit_local(self, client: socket.socket, _address: object, *, admin: bool) -> None:
        client.setblocking(False)
        peer, pidfd = credentials(client)
        self.admit(client, peer, pidfd, admin=admin)

    def admit(
        self, client: socket.socket | TlsStream, peer: Peer, pidfd: int | None = None, *, admin: bool = False
    ) -> None:
        """Enter a client and start its relay, or raise with everything but the client's socket released.

        :raises OSError: there is no room for it.
        """
        try:
            connection = self._entered(peer, admin=admin)
        except BaseException:
            _close_fd(pidfd)
            raise
        try:
            link = Link(connection, client, pidfd, self._watch, self._patience, self._toll(peer))
        except BaseException:
            _close_fd(pidfd)
            connection.close()
            raise
        try:
            link.open(self._private_path)
        except BaseException:
            connection.close()
            raise
        if not self._own(peer):
            self._on_connect(connection)

    def _own(self, peer: Peer) -> bool:
        return peer.certificate is None and peer.pid == self._own_pid

    def _toll(self, peer: Peer) -> Callable[[int], float] | None:
        return None if self._flow is None or self._own(peer) else partial(self._flow.came, peer.identity)

    def _entered(self, peer: Peer, *, admin: bool) -> Connection:
        """A connection that counts as its owner's; one too many is let in for a moment, to be told so."""
        if self._own(peer):
            return self._peers.add(peer, admin=admin)
        owner = peer.identity
        try:
            self._quota.take(owner)
        except KvmError as refusal:
            return self._refused_politely(peer, refusal)
        connection = self._peers.add(peer, admin=admin)
        connection.on_close(lambda: self._quota.give(owner))
        return connection

    def _refused_politely(self, peer: Peer, refusal: KvmError) -> Connection:
        owner = peer.identity
        if self._turned_away[owner] >= _POLITE or self._turned_away.total() >= _POLITE_TO_ALL:
            raise OSError(errno.EUSERS, refusal.message)
        self._turned_away[owner] += 1
        connection = self._peers.add(peer, refusal=refusal)
        timer = self._loop.call_later(_POLITE_SECONDS, connection.close)

        def done() -> None:
            timer.cancel()
            self._turned_away[owner] -= 1
            if not self._turned_away[owner]:
                del self._turned_away[owner]

        connection.on_close(done)
        return connection

    def _pause(self, failure: OSError) -> None:
        """Out of descriptors: the client stays in the listener's queue, and to try again at once would spin."""
        if self._paused is not None:
            return
        _log.warning("accept pauses for %g s: %s", _PAUSE, failure.strerror)
        for listening in self._listeners:
            self._loop.remove_reader(listening)
        self._paused = self._loop.call_later(_PAUSE, self._resume)

    def _resume(self) -> None:
        self._paused = None
        for listening in self._listeners:
            self._loop.add_reader(listening, self._accept, listening)


def _close_fd(fd: int | None) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)
