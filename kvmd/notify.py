"""The service manager's side: what systemd is told, the watchdog it is fed by, and the exit of a daemon nobody uses.

Sources: sd_notify(3), sd_watchdog_enabled(3), systemd.service(5), unix(7).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping

log = logging.getLogger(__name__)

_SEND_SECONDS = 1.0
_LOOK_SECONDS = 1.0


class Notifier:
    """Tells the service manager how the daemon is; tells nobody anything where there is none.

    The variables of the protocol are taken out of the environment, so that no worker speaks for the daemon.

    :ivar watchdog: within how many seconds the manager wants to hear :meth:`alive`; None if it doesn't.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = _address(environ.pop("NOTIFY_SOCKET", ""))
        pid, microseconds = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        self.watchdog: float | None = None
        wanted = microseconds.isascii() and microseconds.isdecimal() and int(microseconds) > 0
        if self._address and wanted and pid in ("", str(os.getpid())):
            self.watchdog = int(microseconds) / 1e6

    def send(self, **facts: object) -> bool:
        """Send one datagram of assignments.

        :return: whether the manager has it. A failure is logged; what follows from silence is the manager's business.
        """
        if not self._address:
            return False
        lines = "\n".join(f"{name}={_one_line(str(value))}" for name, value in facts.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(_SEND_SECONDS)
                sock.connect(self._address)
                sock.sendall(lines.encode())
        except OSError as failure:
            log.warning("the service manager can't be told %s: %s", lines.replace("\n", " "), failure)
            return False
        return True

    def ready(self, status: str) -> bool:
        """Clients are answered; also the end of a reload."""
        return self.send(READY=1, STATUS=status)

    def reloading(self) -> bool:
        """A reload begins; :meth:`ready` ends it."""
        return self.send(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)

    def stopping(self) -> bool:
        """The daemon is about to end."""
        return self.send(STOPPING=1, STATUS="stopping")

    def status(self, text: str) -> bool:
        """A line for ``systemctl status``."""
        return self.send(STATUS=text)

    def alive(self) -> bool:
        """Feed the watchdog."""
        return self.send(WATCHDOG=1)


def _address(name: str) -> str | bytes:
    """NOTIFY_SOCKET as an address: a path, or ``@`` and an abstract name; nothing for any other kind."""
    if name.startswith("@"):
        return b"\0" + os.fsencode(name[1:])
    if name and not name.startswith("/"):
        log.warning("NOTIFY_SOCKET=%s is neither a path nor an abstract name: nothing is told", name)
        return ""
    return name


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


async def feed(notifier: Notifier, check: Callable[[], Awaitable[object]]) -> None:
    """Feed the watchdog for ever, twice as often as it wants, as long as the daemon works.

    It begins half the watchdog's time from now: of its start the manager has heard by READY.

    :param check: asks the daemon what a client would ask; it raises if the answer is wrong. It is given half of the
        watchdog's time: an answer that comes later feeds nothing.
    """
    if notifier.watchdog is None:
        return
    half, well = notifier.watchdog / 2, True
    due = time.monotonic() + half
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + half
        try:
            async with asyncio.timeout(half):
                await check()
        except (RuntimeError, OSError) as failure:  # TimeoutError is an OSError
            well = False
            why = str(failure) or f"no answer within {half:g} s"
            log.error("the self-check failed, and the watchdog goes without: %s", why)
            notifier.status(f"self-check failed: {why}")
        else:
            notifier.alive()
            if not well:
                well = True
                log.info("the self-check passes again")
                notifier.status("serving")


async def idle(seconds: float, busy: Callable[[], bool], leave: Callable[[], None]) -> None:
    """Wait until the daemon has been idle for so long, then leave.

    :param busy: whether anybody uses the daemon; asked once a second.
    :param leave: called at once after ``busy`` said no, so that nobody can come in between.
    """
    look = min(_LOOK_SECONDS, seconds / 4)
    since = time.monotonic()
    while time.monotonic() - since < seconds:
        await asyncio.sleep(look)
        if busy():
            since = time.monotonic()
    leave()
