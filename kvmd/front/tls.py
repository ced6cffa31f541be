"""One TLS connection, with the face of a non-blocking socket: what a pump reads and writes is plain text.

OpenSSL works on memory here and never on the socket: so one step handles no more than was read in one go, whatever
the client sends (a stream of key updates could otherwise keep OpenSSL reading for as long as it comes).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from concurrent.futures import Executor

_CHUNK = 17 * 1024  # ciphertext read at once: one full record, or hundreds of empty ones
_IDLE = 256 * 1024  # ciphertext without any content before the client is cut: key updates, empty records
_OWED = 64 * 1024  # bytes of TLS's own that a client that doesn't read may be owed


class TlsStream:
    """The server's side of a TLS connection over a connected TCP socket, which it owns.

    :ivar tls: the connection's state, for what was negotiated.
    """

    __slots__ = ("_accepted", "_idle", "_in", "_out", "_sock", "_unsent", "tls")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._unsent = memoryview(b"")
        self._accepted = 0
        self._idle = 0

    async def handshake(self, executor: Executor) -> None:
        """Shake hands; the arithmetic runs in a thread, so that nobody waits for it but this client.

        :raises ssl.SSLError: the client is not let in; it has been told why.
        :raises OSError: it went away.
        """
        loop = asyncio.get_running_loop()
        done = False
        while not done:
            try:
                await loop.run_in_executor(executor, self.tls.do_handshake)
                done = True
            except ssl.SSLWantReadError:
                pass
            finally:
                if self._out.pending:
                    await loop.sock_sendall(self._sock, self._out.read())
            if not done:
                data = await loop.sock_recv(self._sock, _CHUNK)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the client went away during the handshake")
                self._in.write(data)

    def fileno(self) -> int:
        """Answer the socket's descriptor, to wait for."""
        return self._sock.fileno()

    def recv_into(self, buffer: memoryview) -> int:
        """Read what has come, as socket.recv_into does.

        :raises BlockingIOError: nothing has come.
        :raises OSError: the connection is broken, or what comes is not what TLS has.
        """
        count = self._decrypt(buffer) if self._in.pending else None
        if count is None:
            data = self._sock.recv(_CHUNK)
            if not data:
                return 0
            self._in.write(data)
            self._idle += len(data)
            count = self._decrypt(buffer)
        if count is None:
            if self._idle > _IDLE:
                raise ConnectionAbortedError(errno.ECONNABORTED, "TLS records without content")
            raise BlockingIOError(errno.EAGAIN, "no whole record has come")
        self._idle = 0
        return count

    def _decrypt(self, buffer: memoryview) -> int | None:
        """Decrypt the records there are; None if there is no whole one, 0 at the end."""
        total = 0
        try:
            while total < len(buffer):
                count: int = self.tls.read(len(buffer) - total, buffer[total:])  # type: ignore[assignment]
                if not count:
                    return total
                total += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return total
        if self._out.pending:
            with contextlib.suppress(BlockingIOError):
                self._flush()
            if self._out.pending > _OWED:
                raise ConnectionAbortedError(errno.ECONNABORTED, "the client does not read what TLS answers")
        return total or None

    def send(self, data: memoryview) -> int:
        """Encrypt and send, as socket.send does: all of it, or nothing so far.

        :raises BlockingIOError: the same data are to be offered again once the socket takes more.
        :raises OSError: the connection is broken.
        """
        if not self._accepted:
            self._accepted = self.tls.write(data)
        self._flush()
        count, self._accepted = self._accepted, 0
        return count

    def _flush(self) -> None:
        while self._unsent or self._out.pending:
            if not self._unsent:
                self._unsent = memoryview(self._out.read())
            self._unsent = self._unsent[self._sock.send(self._unsent) :]

    def shutdown(self, how: int) -> None:
        """Say that nothing more will be sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        with contextlib.suppress(BlockingIOError):
            self._flush()
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
