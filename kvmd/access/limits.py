"""What callers share, how much of it there is in all and for each, and who has how much. Pure but for a clock.

A share counts by identity (``uid:1000``, ``cert:NAME``): whoever takes more of something than its share, or than
there is, is told which key of the configuration says so.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvmd.errors import KvmError, Reason, error

if TYPE_CHECKING:
    from kvmd.config import Limits


@dataclass(slots=True)
class Quota:
    """One thing that is held for a while.

    :ivar name: what it is called in metrics.
    :ivar reason: of the error that says it is used up.
    :ivar most: how much there is; of an owner, ``most_per_owner``.
    :ivar keys: the configuration's keys of the two.
    :ivar told: what the error says of it, after the number.
    :ivar used: how much is taken.
    :ivar refused: how often there was no more.
    """

    name: str
    reason: Reason
    most: int
    most_per_owner: int
    keys: tuple[str, str]
    told: str
    used: int = 0
    refused: int = 0
    _owned: Counter[str] = field(default_factory=Counter)

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
    """A token bucket that holds what comes in a second."""

    __slots__ = ("at", "left", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate, self.left, self.at = rate, rate, now

    def fill(self, now: float) -> float:
        self.left = min(self.rate, self.left + (now - self.at) * self.rate)
        self.at = now
        return self.left


class Rate:
    """How often something may happen in a second, in all and for each owner; a second's worth may come at once."""

    name = "calls_per_second"

    def __init__(self, most: int, most_per_owner: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.most_per_owner, self._clock = most, most_per_owner, clock
        self.refused = 0
        self._all = _Bucket(most, clock())
        self._owned: dict[str, _Bucket] = {}
        self._swept = clock()

    def pass_(self, owner: str) -> None:
        """Let one more pass.

        :raises KvmError: RATE_LIMIT.
        """
        now = self._clock()
        if now - self._swept > 1:
            self._sweep(now)
        own = self._owned.get(owner)
        if own is None:
            own = self._owned[owner] = _Bucket(self.most_per_owner, now)
        for bucket, whose, key in ((own, f" of {owner}", f"{self.name}_per_uid"), (self._all, "", self.name)):
            if bucket.fill(now) < 1:
                self.refused += 1
                message = f"{bucket.rate:g} calls{whose} in a second already (limits.{key}); wait"
                raise error(Reason.RATE_LIMIT, message, limit=int(bucket.rate), key=key)
        own.left -= 1
        self._all.left -= 1

    def _sweep(self, now: float) -> None:
        """Forget who has not called for a second: their buckets are full."""
        self._owned = {owner: bucket for owner, bucket in self._owned.items() if bucket.fill(now) < bucket.rate}
        self._swept = now


# Of each quota the two keys, the reason, and what the error says.
_TABLE = {
    "connections": ("connections", "connections_per_uid", Reason.CONNECTION_LIMIT, "connections are open"),
    "descriptors": ("descriptors", "descriptors_per_uid", Reason.DESCRIPTOR_LIMIT, "descriptors are open"),
    "workers": ("workers", "workers_per_uid", Reason.WORKER_LIMIT, "images are open"),
    "calls": ("concurrent_calls", "calls_per_uid", Reason.CALL_LIMIT, "calls are under way"),
    "streams": ("streams", "streams_per_uid", Reason.STREAM_LIMIT, "streams are under way"),
    "inflight_bytes": ("inflight_bytes", "inflight_bytes_per_uid", Reason.BYTES_LIMIT, "bytes wait to be taken"),
}


class Quotas:
    """All quotas of a daemon, by name, and the rate of calls."""

    def __init__(self, settings: Limits) -> None:
        self.all = {
            name: Quota(name, reason, getattr(settings, key), getattr(settings, per_owner), (key, per_owner), told)
            for name, (key, per_owner, reason, told) in _TABLE.items()
        }
        self.rate = Rate(settings.calls_per_second, settings.calls_per_second_per_uid)

    def __getitem__(self, name: str) -> Quota:
        return self.all[name]
