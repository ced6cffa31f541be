"""What the daemon counts, for Prometheus and for the admin service."""

from __future__ import annotations

import time
from bisect import bisect_left

from kvmd.access.audit import Audit
from kvmd.access.limits import Quotas
from kvmd.handles.pool import Pool

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Upper bounds, in seconds, of the classes that calls fall into by how long they took; one more has the others."""


class Calls:
    """How often a method ended in one way, and how long that took, in seconds."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0


class Durations:
    """How long a method's calls took: how many fell into each of the classes of :data:`BOUNDS`, and seconds in all."""

    def __init__(self) -> None:
        self.counts, self.seconds = [0] * (len(BOUNDS) + 1), 0.0


class Metrics:
    """Counters of calls, and what others count.

    :ivar calls: by (method, status): its path, and ``OK`` or the reason of the failure.
    :ivar durations: by method.
    """

    def __init__(self, quotas: Quotas, pool: Pool, audit: Audit) -> None:
        self.quotas, self.pool, self.audit = quotas, pool, audit
        self.calls: dict[tuple[str, str], Calls] = {}
        self.durations: dict[str, Durations] = {}
        self._began = time.monotonic()

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def called(self, method: str, status: str, seconds: float) -> None:
        """Count a call that has ended. Only methods that exist are counted: a client makes no new labels up."""
        calls = self.calls.setdefault((method, status), Calls())
        calls.count += 1
        calls.seconds += seconds
        durations = self.durations.setdefault(method, Durations())
        durations.counts[bisect_left(BOUNDS, seconds)] += 1
        durations.seconds += seconds
