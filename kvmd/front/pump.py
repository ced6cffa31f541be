"""One direction of a relayed connection: from a socket to a socket, as fast as the slower of the two.

What has been read and can't be written yet is held, and nothing more is read until it has gone: that is the
back-pressure, and it bounds a stalled direction to one buffer. An idle one holds nothing: all pumps of a
process read into the same buffer, which the event loop's single thread makes safe.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from kvmd.front.tls import TlsStream

BUFFER = 256 * 1024
_SIP = 16 * 1024  # of what is paid for, so that nobody waits behind much of anybody else's
_shared = memoryview(bytearray(BUFFER))


class Pump:
    """Copies from ``source`` to ``target``, both non-blocking; started by :meth:`start`, ended by :meth:`stop`.

    asyncio's transports would keep a buffer each; the loop's readiness callbacks need none.

    :ivar ended: nothing more will be copied.
    :ivar broken: the socket that failed, if that is why.
    :ivar progress: the loop's time at which the target last took something, while :attr:`waiting`.
    """

    __slots__ = (
        "_held", "_loop", "_on_end", "_on_wait", "_rest", "_sip", "_started", "_toll",
        "broken", "ended", "progress", "source", "target",
    )  # fmt: skip

    def __init__(
        self,
        source: socket.socket | TlsStream,
        target: socket.socket | TlsStream,
        on_end: Callable[[Pump], None],
        on_wait: Callable[[], None] | None = None,
        toll: Callable[[int], float] | None = None,
    ) -> None:
        """Make a pump.

        :param on_end: called once with the pump, after the source's end or a failure of either socket.
        :param on_wait: called whenever the target stops taking what there is.
        :param toll: called with the length of what has come; says for how many seconds no more is read.
        """
        self._loop = asyncio.get_running_loop()
        self.source = source
        self.target = target
        self._on_end = on_end
        self._on_wait = on_wait
        self._toll = toll
        # A TLS stream is read to its end: what it has decrypted, no event tells of.
        whole = toll is None or isinstance(source, TlsStream)
        self._sip = _shared if whole else _shared[:_SIP]
        self._rest: asyncio.TimerHandle | None = None
        self._held: memoryview | None = None
        self.broken: socket.socket | TlsStream | None = None
        self.ended = False
        self._started = False
        self.progress = 0.0

    @property
    def waiting(self) -> bool:
        """Whether there is something that the target doesn't take."""
        return self._held is not None

    def start(self) -> None:
        """Begin to copy."""
        self._started = True
        self._loop.add_reader(self.source, self._readable)
        if isinstance(self.source, TlsStream):
            # What came with the end of the handshake is in the stream already, where no event tells of it.
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        if self._started and self._held is None:
            self._readable()

    def stop(self) -> None:
        """Stop for good and drop what is held; a second call does nothing."""
        self._started = False
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._held is None:
            self._loop.remove_reader(self.source)
        else:
            self._loop.remove_writer(self.target)
            self._held = None

    def _end(self, broken: socket.socket | TlsStream | None = None) -> None:
        self.stop()
        self.ended = True
        self.broken = broken
        self._on_end(self)

    def _readable(self) -> None:
        try:
            count = self.source.recv_into(self._sip)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(self.source)
            return
        if not count:
            self._end()
            return
        sent = self._send(_shared[:count])
        if sent is None:
            return
        if sent < count:
            self._hold(_shared[sent:count])
        if self._toll is not None and (seconds := self._toll(count)) > 0:
            self._loop.remove_reader(self.source)
            self._rest = self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._rest = None
        if self._held is None:
            self._loop.add_reader(self.source, self._readable)

    def _send(self, data: memoryview) -> int | None:
        """Send what the target takes, perhaps nothing; None if it failed, and all is over."""
        try:
            return self.target.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._end(self.target)
            return None

    def _hold(self, rest: memoryview) -> None:
        self._loop.remove_reader(self.source)
        self._held = memoryview(bytes(rest))  # a copy: the next pump reads over the shared buffer
        self.progress = self._loop.time()
        self._loop.add_writer(self.target, self._writable)
        if self._on_wait is not None:
            self._on_wait()

    def _writable(self) -> None:
        if self._held is None:
            return
        sent = self._send(self._held)
        if not sent:
            return
        self.progress = self._loop.time()
        self._held = self._held[sent:]
        if not self._held:
            self._held = None
            self._loop.remove_writer(self.target)
            if self._rest is None:
                self._loop.add_reader(self.source, self._readable)
