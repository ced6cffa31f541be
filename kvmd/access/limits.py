"""What callers share, how much of it there is in all and for each, and who has how much. Pure but for a clock.

A share counts by identity (``uid:1000``, ``cert:NAME``): whoever takes more of something than its share, or than
there is, is told which key of the configuration says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kvmd.errors import KvmError, Reason, error

if TYPE_CHECKING:
    from kvmd.config import Limits


class Quota:
    """One thing that is held for a while.

    :param name: what it is called in metrics.
    :param reason: of the error that says it is used up.
    :param most: how much there is; of an owner, ``most_per_owner``.
    :param keys: the configuration's keys of the two.
    :param told: what the error says of it, after the number.
    :ivar used: how much is taken.
    :ivar refused: how often there was no more.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - a row of a table
        self, name: str, reason: Reason, most: int, most_per_owner: int, keys: tuple[str, str], told: str
    ) -> None:
        self.name, self.reason, self.most, self.most_per_owner = name, reason, most, most_per_owner
        self.keys, self.told = keys, told
        self.used = self.refused = 0
        self._owned = Counter[str]()

    def of(self, owner: str) -> int:
        """How much an owner has."""
        return self._owned.get(owner, 0)

    def full(self, owner: str, amount: int = 1) -> KvmError | None:
        """Why an owner can't have so much more; None if it can."""
        shares = ((self.most, self.used, "", self.keys[0]), (self.most_per_owner, self.of(owner), owner, self.keys[1]))
        for most, used, whose, key in shares:
            if used + amount > most:
                of = f" of {whose}" if whose else ""
                return error(self.reason, f"{most} {self.told}{of} already (limits.{key})", limit=most, key=key)
        return None

    def room(self, owner: str, amount: int = 1) -> None:
        """Check that there is so much for an owner.

        :raises KvmError: of :attr:`reason`.
        """
        if (failure := self.full(owner, amount)) is not None:
            self.refused += 1
            raise failure

    def take(self, owner: str, amount: int = 1) -> None:
        """Take so much for an owner, who gives it back.

        :raises KvmError: of :attr:`reason`.
        """
        self.room(owner, amount)
        self.used += amount
        self._owned[owner] += amount

    def give(self, owner: str, amount: int = 1) -> None:
        """Give so much back."""
        self.used -= amount
        self._owned[owner] -= amount
        if not self._owned[owner]:
            del self._owned[owner]

    @contextmanager
    def held(self, owner: str, amount: int = 1) -> Iterator[None]:
        """Have so much for the time of a ``with`` block."""
        self.take(owner, amount)
        try:
            yield
        finally:
            self.give(owner, amount)


class _Bucket:
    """A token bucket: so many come in a second, and so many it holds."""

    __slots__ = ("at", "left", "most", "rate")

    def __init__(self, rate: float, most: float, now: float) -> None:
        self.rate, self.most, self.left, self.at = rate, most, most, now

    def fill(self, now: float) -> float:
        self.left = min(self.most, self.left + (now - self.at) * self.rate)
        self.at = now
        return self.left


class _Buckets:
    """A bucket for each owner that has lately been there."""

    def __init__(self, rate: float, most: float, now: float) -> None:
        self._rate, self._most, self._swept = rate, most, now
        self._owned: dict[str, _Bucket] = {}

    def of(self, owner: str, now: float) -> _Bucket:
        if now - self._swept > 1:  # a full one is as good as none
            self._owned = {each: bucket for each, bucket in self._owned.items() if bucket.fill(now) < bucket.most}
            self._swept = now
        if (own := self._owned.get(owner)) is None:
            own = self._owned[owner] = _Bucket(self._rate, self._most, now)
        return own


class Rate:
    """How often something may happen in a second, in all and for each owner; a second's worth may come at once."""

    name = "calls_per_second"

    def __init__(self, most: int, most_per_owner: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.most_per_owner, self._clock = most, most_per_owner, clock
        self.refused = 0
        self._all = _Bucket(most, most, clock())
        self._buckets = _Buckets(most_per_owner, most_per_owner, clock())

    def pass_(self, owner: str) -> None:
        """Let one more pass.

        :raises KvmError: RATE_LIMIT.
        """
        now = self._clock()
        own = self._buckets.of(owner, now)
        for bucket, whose, key in ((own, f" of {owner}", f"{self.name}_per_uid"), (self._all, "", self.name)):
            if bucket.fill(now) < 1:
                self.refused += 1
                message = f"{bucket.rate:g} calls{whose} in a second already (limits.{key}); wait"
                raise error(Reason.RATE_LIMIT, message, limit=int(bucket.rate), key=key)
        own.left -= 1
        self._all.left -= 1


class Flow:
    """How many bytes may come from each owner in a second; who sends faster is not refused, but read from later.

    What is in them is known only once they have been parsed, which is what costs: frames of HTTP/2 that are no call.
    A quarter of a second's worth may come at once. Refused calls count as well, or to be refused would be for free.

    :ivar waits: how often somebody had to wait.
    """

    name = "received_bytes_per_second"
    _BURST = 0.25
    _REFUSALS = 64  # that use up what may come in a second

    def __init__(self, most_per_owner: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_per_owner, self._clock = most_per_owner, clock
        self.waits = 0
        self._buckets = _Buckets(most_per_owner, most_per_owner * self._BURST, clock())

    def came(self, owner: str, amount: float) -> float:
        """Count bytes that have come; for how many seconds no more may."""
        now = self._clock()
        own = self._buckets.of(owner, now)
        own.left = own.fill(now) - amount
        if own.left >= 0:
            return 0.0
        self.waits += 1
        return -own.left / own.rate

    def refused(self, owner: str) -> None:
        """Count a call that was one too many; an owner waits for a second at most because of such calls."""
        own = self._buckets.of(owner, now := self._clock())
        own.left = max(own.fill(now) - own.rate / self._REFUSALS, min(own.left, -own.rate))


# Of each quota the two keys, the reason, and what the error says.
_TABLE = {
    "connections": ("connections", "connections_per_uid", Reason.CONNECTION_LIMIT, "connections are open"),
    "descriptors": ("descriptors", "descriptors_per_uid", Reason.DESCRIPTOR_LIMIT, "descriptors are open"),
    "workers": ("workers", "workers_per_uid", Reason.WORKER_LIMIT, "images are open"),
    "calls": ("concurrent_calls", "calls_per_uid", Reason.CALL_LIMIT, "calls are under way"),
    "streams": ("streams", "streams_per_uid", Reason.STREAM_LIMIT, "streams are under way"),
    "direct": ("direct", "direct_per_uid", Reason.DESCRIPTOR_LIMIT, "descriptors are read directly"),
    "inflight_bytes": ("inflight_bytes", "inflight_bytes_per_uid", Reason.BYTES_LIMIT, "bytes wait to be taken"),
}


class Quotas:
    """All quotas of a daemon, by name, the rate of calls, and the flow of what clients send."""

    def __init__(self, settings: Limits) -> None:
        self.all = {
            name: Quota(name, reason, getattr(settings, key), getattr(settings, per_owner), (key, per_owner), told)
            for name, (key, per_owner, reason, told) in _TABLE.items()
        }
        self.rate = Rate(settings.calls_per_second, settings.calls_per_second_per_uid)
        self.flow = Flow(settings.received_bytes_per_second_per_uid)

    def __getitem__(self, name: str) -> Quota:
        return self.all[name]
