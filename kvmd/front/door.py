"""The door of the fast path: a second socket, where a client hands a ticket in and is given descriptors.

What the ticket is good for is decided elsewhere. Whoever says nothing, or says it too late, is sent away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from kvmd.fast import TICKET
from kvmd.front.peer import Peer, credentials

_log = logging.getLogger(__name__)

_PATIENCE = 2.0
_MOST = 64
_MOST_PER_UID = 16
_PAUSE = 0.1

Redeem = Callable[[bytes, Peer], Awaitable[Sequence[int]]]
"""Takes a ticket, and who has handed it in; answers descriptors, to be closed by who has asked. None: it is no good."""


class Door:
    """Serves a listening SEQPACKET socket, which it owns, on the running loop."""

    def __init__(self, listening: socket.socket, redeem: Redeem) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening, self._redeem = listening, redeem
        self._inside: set[asyncio.Task[None]] = set()
        self._by_uid = Counter[int]()
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Stop accepting, and send away who is inside. A second call does nothing."""
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
            self._listening.close()
        for task in self._inside:
            task.cancel()

    def _accept(self) -> None:
        try:
            client, _ = self._listening.accept()
        except BlockingIOError:
            return
        except OSError as failure:
            _log.warning("the fast path's socket pauses for %g s: %s", _PAUSE, failure.strerror)
            self._loop.remove_reader(self._listening)
            self._loop.call_later(_PAUSE, self._resume)
            return
        client.setblocking(False)
        try:
            peer, pidfd = credentials(client)
            if pidfd is not None:
                os.close(pidfd)
        except OSError:
            client.close()
            return
        if len(self._inside) >= _MOST or self._by_uid[peer.uid] >= _MOST_PER_UID:
            client.close()
            return
        self._by_uid[peer.uid] += 1
        self._inside.add(task := asyncio.ensure_future(self._serve(client, peer)))
        task.add_done_callback(self._inside.discard)

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)

    async def _serve(self, client: socket.socket, peer: Peer) -> None:
        try:
            with client, contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    ticket = await self._loop.sock_recv(client, TICKET + 1)
                fds = await self._redeem(ticket, peer)
                try:
                    if fds:
                        socket.send_fds(client, [b"\0"], fds)
                finally:
                    for fd in fds:
                        os.close(fd)
        finally:
            self._by_uid[peer.uid] -= 1
            if not self._by_uid[peer.uid]:
                del self._by_uid[peer.uid]
