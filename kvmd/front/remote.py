"""Clients from other hosts: from accept to the name in a certificate, and on until that counts no more.

Before a client has shown a certificate it gets nothing of the daemon's but a place among few, and that not for long:
a newcomer pushes out who has waited longest, and one address has few places.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from kvmd.front.certificates import CertificateError, TlsFiles, identify, load
from kvmd.front.listener import tcp_name
from kvmd.front.peer import NOBODY, Peer
from kvmd.front.peers import Connection
from kvmd.front.refusals import Refusals, why
from kvmd.front.tls import TlsStream

log = logging.getLogger(__name__)

Admit = Callable[[TlsStream, Peer], None]

LOOK = 1.0
"""Seconds between two looks at the files, and at the connections that they end."""
_FAREWELL = 1.0  # seconds for a client that is not let in to read why
_PER_ADDRESS = 16
_PUSHED_OUT = "pushed out by newer clients before it had shown a certificate"


class Remote:
    """The clients of TLS listeners."""

    def __init__(
        self, files: TlsFiles, admit: Admit, refusals: Refusals, *, most: int = 64, timeout: float = 10.0
    ) -> None:
        """Read the certificates; within a running loop.

        :param admit: takes over a connection whose client is known; raises OSError if there is no room.
        :param refusals: told of who was not let in.
        :param most: clients at once that have not shown a certificate.
        :param timeout: seconds that a client has for it.
        :raises CertificateError: they can't be used.
        """
        self._files, self._versions = files, files.versions()
        self._trust = load(files)
        self._admit, self._refusals = admit, refusals
        self._most, self._timeout = most, timeout
        self._distrusted = False
        self._wrong = ""
        self._waiting: dict[asyncio.Task[None], str] = {}
        # One thread: a flood of handshakes costs its own kind time, and nobody else.
        self._thread = ThreadPoolExecutor(1, "handshake")

    def take(self, sock: socket.socket, address: tuple[str, int]) -> None:
        """Let a client that has just been accepted show who it is; owns the socket from here on."""
        host, name = address[0], tcp_name(address)
        if Counter(self._waiting.values())[host] >= _PER_ADDRESS:
            sock.close()
            self._refusals.add(name, f"{_PER_ADDRESS} clients of this address have not shown a certificate yet")
            return
        if len(self._waiting) >= self._most:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            oldest.cancel()
        task = asyncio.ensure_future(self._greet(sock, name))
        self._waiting[task] = host
        task.add_done_callback(lambda done: self._waiting.pop(done, None))

    async def _greet(self, sock: socket.socket, address: str) -> None:
        reason: str | None = _PUSHED_OUT
        try:
            reason = await self._introduce(sock, address)
        finally:
            if reason is not None:
                sock.close()
                self._refusals.add(address, reason)

    async def _introduce(self, sock: socket.socket, address: str) -> str | None:
        """Shake hands and hand the client over; why not, if not."""
        trust = self._trust
        try:
            async with asyncio.timeout(self._timeout):
                _tune(sock)
                stream = TlsStream(sock, trust.context)
                await stream.handshake(self._thread)
            if trust.authorities != self._trust.authorities:
                return "the authorities changed during the handshake"
            self._admit(stream, Peer(NOBODY, NOBODY, 0, certificate=identify(stream.tls, address)))
        except TimeoutError as failure:
            return why(failure) if failure.errno else f"no handshake within {self._timeout:g} s"
        except (OSError, ValueError) as failure:
            if isinstance(failure, ssl.SSLError | ValueError):
                await _farewell(sock)
            return why(failure)
        return None

    def reread(self) -> None:
        """Have the next look read the files whether they have changed or not."""
        self._versions = ()

    async def watch(self, connections: Iterable[Connection]) -> None:
        """Follow the files, and end connections whose certificate counts no more, until cancelled."""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._look()
                self._expel(connections)
                self._refusals.flush()
            except Exception:  # to stop looking would be to trust for ever
                log.exception("looking after certificates failed")

    async def _look(self) -> None:
        """Take what has changed, or keep what there is if the new is wrong."""
        try:
            versions = await asyncio.to_thread(self._files.versions)
            if versions == self._versions:
                return
            self._versions = versions
            trust = await asyncio.to_thread(load, self._files)
        except CertificateError as wrong:
            if str(wrong) != self._wrong:  # a file that is missing is missing each time
                log.error("the certificates stay as they were: %s", wrong)
            self._wrong = str(wrong)
            return
        self._distrusted = self._distrusted or trust.authorities != self._trust.authorities
        self._trust, self._wrong = trust, ""
        log.info("certificates read again; %d revoked", len(trust.revoked))

    def _expel(self, connections: Iterable[Connection]) -> None:
        now, distrusted, self._distrusted = time.time(), self._distrusted, False
        for connection in connections:
            peer = connection.peer
            if peer.certificate is None:
                continue
            if peer.certificate.serial in self._trust.revoked:
                reason = "certificate revoked"
            elif peer.certificate.expires <= now:
                reason = "certificate has expired"
            elif distrusted:
                reason = "tls_client_ca has changed, connect again"
            else:
                continue
            connection.close()
            self._refusals.add(peer.certificate.address, f"{reason} ({peer.identity}): its connection is closed")

    def close(self) -> None:
        """Turn away who has not shown a certificate. A second call does nothing."""
        for task in list(self._waiting):
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def _tune(sock: socket.socket) -> None:
    """Notice within about a minute that the other host is gone."""
    sock.setblocking(False)
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000),
    ):
        sock.setsockopt(level, option, value)


async def _farewell(sock: socket.socket) -> None:
    """Wait until the client has read what TLS told it: a close with unread data would take it back."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_FAREWELL):
            while await loop.sock_recv(sock, 65536):
                pass
