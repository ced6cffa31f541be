"""The front: accepts clients, learns who they are, and relays each to grpc's private socket under its token."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket

from kvmd.front.link import Link
from kvmd.front.peer import Peer, credentials
from kvmd.front.peers import Peers
from kvmd.front.watch import HangupWatch

_log = logging.getLogger(__name__)

_BURST = 64  # clients accepted before other work gets its turn
_PAUSE = 0.1
_NOT_OURS = (errno.ECONNABORTED, errno.EPERM, errno.EPROTO)  # accept(2): this client failed, the next may not
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Front:
    """Relays clients of listening sockets to grpc's private socket.

    One event loop, no threads; everything is called on the loop's thread.
    """

    def __init__(
        self,
        peers: Peers,
        private_path: str,
        *,
        max_connections: int = 256,
        max_per_uid: int = 32,
        patience: float = 30.0,
    ) -> None:
        """Make a front; must be called within a running loop.

        :param peers: the table that connections are entered into.
        :param private_path: where grpc listens, in a directory that only the daemon can enter.
        :param max_connections: connections at once; each takes three descriptors.
        :param max_per_uid: connections of one user at once.
        :param patience: seconds after which a client that takes nothing of what there is for it is cut.
        """
        self._loop = asyncio.get_running_loop()
        self._peers = peers
        self._private_path = private_path
        self._max_connections = max_connections
        self._max_per_uid = max_per_uid
        self._patience = patience
        self._watch = HangupWatch()
        self._listeners: list[socket.socket] = []
        self._paused: asyncio.TimerHandle | None = None
        self._refused = 0

    @property
    def refused(self) -> int:
        """How many clients were turned away since the start: over a limit, gone, or for want of descriptors."""
        return self._refused

    def serve(self, listening: socket.socket) -> None:
        """Begin to accept; the front closes the socket in :meth:`stop_accepting`."""
        listening.setblocking(False)
        self._listeners.append(listening)
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
                client, _address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as failure:
                if failure.errno in _NOT_OURS:
                    continue
                self._pause(failure)
                return
            try:
                self._admit(client)
            except OSError as failure:
                self._refused += 1
                client.close()
                if failure.errno in _EXHAUSTED:
                    self._pause(failure)
                    return
                _log.info("a client was turned away: %s", failure.strerror or failure)

    def _admit(self, client: socket.socket) -> None:
        """Enter a client and start its relay, or raise with everything but the client's socket released."""
        client.setblocking(False)
        if len(self._peers) >= self._max_connections:
            raise OSError(errno.EUSERS, f"limits.connections: {self._max_connections} connections are open")
        peer, pidfd = credentials(client)
        try:
            self._check_uid(peer)
            connection = self._peers.add(peer)
        except BaseException:
            _close_fd(pidfd)
            raise
        try:
            link = Link(connection, client, pidfd, self._watch, self._patience)
        except BaseException:
            _close_fd(pidfd)
            connection.close()
            raise
        try:
            link.open(self._private_path)
        except BaseException:
            connection.close()
            raise

    def _check_uid(self, peer: Peer) -> None:
        if self._peers.count(peer.uid) >= self._max_per_uid:
            raise OSError(errno.EUSERS, f"limits: uid {peer.uid} has {self._max_per_uid} connections open")

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
