"""The table of connections: from what grpc says of a connection to who is on the other end of it.

The key is the whole string of ``context.peer()``. It is never taken apart: a client that could choose any
part of it would choose its own identity (CVE-2019-7304, where snapd did so).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator

from kvmd.errors import KvmError
from kvmd.front.peer import Peer

_log = logging.getLogger(__name__)


class Connection:
    """A client's connection, from accept to the moment either side goes.

    Lives on the event loop's thread, as all of the front does.

    :ivar peer: who is on the other end.
    :ivar token: the random name of the relay's socket.
    :ivar opened: wall-clock time of the accept in nanoseconds; made unique, so that it also orders connections.
    :ivar admin: whether it came through the admin service's socket.
    :ivar refusal: what every call over it answers, if there was no place for it.
    :ivar closed: whether it is over.
    """

    __slots__ = ("_callbacks", "admin", "closed", "opened", "peer", "refusal", "token")

    def __init__(
        self, peer: Peer, token: str, opened: int, *, admin: bool = False, refusal: KvmError | None = None
    ) -> None:
        self.admin = admin
        self.refusal = refusal
        self.peer = peer
        self.token = token
        self.opened = opened
        self.closed = False
        self._callbacks: dict[Callable[[], object], None] = {}

    def __repr__(self) -> str:
        return f"<Connection {self.peer.identity} pid {self.peer.pid}{' closed' if self.closed else ''}>"

    def on_close(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` run once when the connection closes; at once if it has."""
        if self.closed:
            _run(callback)
        else:
            self._callbacks[callback] = None

    def forget(self, callback: Callable[[], object]) -> None:
        """Take a callback back; nothing happens if it isn't there or has run."""
        self._callbacks.pop(callback, None)

    def close(self) -> None:
        """Cut the connection and run the callbacks, in the order they were given; a second call does nothing."""
        if self.closed:
            return
        self.closed = True
        callbacks, self._callbacks = self._callbacks, {}
        for callback in callbacks:
            _run(callback)


class Peers:
    """The open connections, by what grpc says of each."""

    def __init__(self) -> None:
        self._connections: dict[str, Connection] = {}
        self._opened = 0

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._connections.values()))

    def lookup(self, grpc_peer: str) -> Connection | None:
        """Find the connection that a call came over.

        :param grpc_peer: what ``context.peer()`` returned, whole.
        :return: None for anything that didn't come through the front.
        """
        return self._connections.get(grpc_peer)

    def add(self, peer: Peer, *, admin: bool = False, refusal: KvmError | None = None) -> Connection:
        """Enter a new connection under a new random token; it leaves the table when it closes."""
        token = os.urandom(16).hex()  # hexadecimal: grpc echoes it as it is, and percent-encodes other bytes
        self._opened = max(self._opened + 1, time.time_ns())
        connection = Connection(peer, token, self._opened, admin=admin, refusal=refusal)
        key = f"unix-abstract:{token}"
        self._connections[key] = connection
        connection.on_close(lambda: self._connections.pop(key))
        return connection


def _run(callback: Callable[[], object]) -> None:
    try:
        callback()
    except Exception:  # noqa: BLE001 - the other callbacks hold other clients' resources
        _log.exception("a connection's close callback failed")
