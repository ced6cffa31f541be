"""Prometheus's way to ask: HTTP GET of /metrics, over a Unix socket or the loopback, one request a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial

from kvmd.config import MetricsSettings
from kvmd.front.listener import bind_unix, unlink_socket
from kvmd.front.lock import InstanceLock
from kvmd.metrics import Metrics

log = logging.getLogger(__name__)

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PATIENCE = 5.0
_MOST_HEAD = 8192
_MOST_AT_ONCE = 16


class _Answers:
    """Answers requests with what ``render`` gives."""

    def __init__(self, render: Callable[[], bytes]) -> None:
        self._render = render
        self._under_way = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._under_way += 1
        try:
            if self._under_way <= _MOST_AT_ONCE:
                async with asyncio.timeout(_PATIENCE):
                    writer.write(self._response(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            log.debug("a client of the metrics socket did not finish its request")
        finally:
            self._under_way -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _response(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if path != b"/metrics":
            status, kind, body = "404 Not Found", "text/plain", b"there is /metrics\n"
        elif method not in (b"GET", b"HEAD"):
            status, kind, body = "405 Method Not Allowed", "text/plain", b"GET it\n"
        else:
            status, kind, body = "200 OK", _TYPE, self._render()
        lines = (f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == b"HEAD" else body)


@contextlib.asynccontextmanager
async def serving(settings: MetricsSettings, metrics: Metrics) -> AsyncIterator[None]:
    """Serve where the configuration says, for the time of a ``with`` block; nowhere, if it says nothing.

    :raises ListenError: if a Unix socket can't be had.
    :raises OSError: if a port can't be.
    """
    if not settings.listen:
        yield
        return
    from kvmd.prometheus import text  # noqa: PLC0415 - a tenth of the daemon's start, for those who ask for it

    answers = _Answers(partial(text, metrics))
    with contextlib.ExitStack() as stack:
        if settings.listen.startswith("unix:"):
            lock = stack.enter_context(InstanceLock(settings.listen.removeprefix("unix:")))
            stack.callback(unlink_socket, lock.path, lock)
            sock = bind_unix(lock.path, settings.mode, lock)
            server = await asyncio.start_unix_server(answers, sock=sock, limit=_MOST_HEAD)
        else:
            host, _, port = settings.listen.rpartition(":")
            server = await asyncio.start_server(answers, host.strip("[]"), int(port), limit=_MOST_HEAD)
        async with server:
            log.info("metrics on %s", settings.listen)
            yield
