"""The audit record: who did what, one record an event; never contents of memory, never a descriptor id in clear."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from kvmd.access.sinks import Sink

log = logging.getLogger(__name__)


class Who(Protocol):
    """What a record says of a peer: front.Peer has it."""

    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def uid(self) -> int: ...  # noqa: D102
    @property
    def gid(self) -> int: ...  # noqa: D102
    @property
    def pid(self) -> int: ...  # noqa: D102
    @property
    def exe(self) -> str | None: ...  # noqa: D102
    @property
    def start_time(self) -> int | None: ...  # noqa: D102
    @property
    def cgroup(self) -> str | None: ...  # noqa: D102
    @property
    def certificate(self) -> Certificate | None: ...  # noqa: D102


class Certificate(Protocol):
    """What a record says of a client that came by TLS: front.Certificate has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def serial(self) -> int: ...  # noqa: D102
    @property
    def address(self) -> str: ...  # noqa: D102


def tag(descriptor: str) -> str:
    """What can be written down of a descriptor's id: its first six bytes; the others are the secret."""
    return descriptor[:12]


def _of(who: Who) -> dict[str, object]:
    """What a record says of a peer: of one that came from afar, the certificate is all that is known."""
    if (shown := who.certificate) is not None:
        return {"peer": who.identity, "cert": shown.name, "serial": f"{shown.serial:x}", "address": shown.address}
    return {
        "peer": who.identity, "uid": who.uid, "gid": who.gid, "pid": who.pid, "exe": who.exe,
        "start_time": who.start_time, "cgroup": who.cgroup,
    }  # fmt: skip


class Audit:
    """Writes records to sinks, before the answer goes out.

    A sink that takes no more (a full disk) raises nothing: whoever must not go on without a record asks
    :meth:`record` whether there is one, and everybody else finishes what they have begun.

    :param required: whether :meth:`record` says so; else losing a record stops nobody.
    :param request: gives the id of the request that is being handled, or None.
    """

    def __init__(
        self, sinks: Sequence[Sink], *, required: bool = True, request: Callable[[], str | None] = lambda: None
    ) -> None:
        self._sinks, self._required, self._request = sinks, required, request
        self.written = self.lost = 0

    def record(self, event: str, who: Who, **facts: object) -> bool:
        """Write one record: ``event`` is connect, open, grant, denied, read, write, written or close.

        :returns: whether whoever needs it may go on: it is written to every sink, or need not be. The log says why not.
        """
        request = self._request()
        named = {} if request is None else {"request": request}
        return self._put({"time": time.time(), "event": event, **_of(who), **named, **facts})

    def refused(self, address: str, reason: str) -> bool:
        """Record that a client of another host was not let in, or no longer: an event of nobody's.

        :returns: as :meth:`record`.
        """
        return self._put({"time": time.time(), "event": "refused", "peer": None, "address": address, "why": reason})

    def _put(self, record: dict[str, object]) -> bool:
        written = [self._written(sink, record) for sink in self._sinks]  # to each, whatever the others do
        good = all(written)
        self.written += good
        self.lost += not good
        return good or not self._required

    @staticmethod
    def _written(sink: Sink, record: dict[str, object]) -> bool:
        try:
            sink.write(record)
        except OSError as failure:
            log.error("an audit record is lost: %s", failure.strerror)
            return False
        return True

    def close(self) -> None:
        """Close the sinks; what is recorded after that is lost."""
        for sink in self._sinks:
            sink.close()


class Reads:
    """What has been read by a descriptor since that was last recorded: counts, and within which addresses."""

    def __init__(self) -> None:
        self.calls = self.bytes = self._high = 0
        self._low: int | None = None

    def add(self, count: int, ranges: Sequence[tuple[int, int]], calls: int = 1) -> None:
        """Count one call's answer of so many bytes about these (address, length); of several, if they are not known."""
        self.calls += calls
        self.bytes += count
        for address, length in ranges:
            self._low = address if self._low is None else min(self._low, address)
            self._high = max(self._high, address + length)

    def taken(self) -> dict[str, object]:
        """The facts for a record; counting starts anew."""
        facts: dict[str, object] = {"calls": self.calls, "bytes": self.bytes}
        if self._low is not None:
            facts |= {"low": f"{self._low:#x}", "high": f"{self._high:#x}"}
        self.calls = self.bytes = self._high = 0
        self._low = None
        return facts
