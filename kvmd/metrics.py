"""What the daemon counts, for Prometheus and for the admin service."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kvmd.access.audit import Audit
from kvmd.access.limits import Quotas
from kvmd.handles.pool import Pool

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(slots=True)
class Calls:
    """How often a method ended in one way, and how long that took, in seconds."""

    count: int = 0
    seconds: float = 0.0


class Metrics(Collector):
    """Counters of calls, and a view of what others count.

    :ivar calls: by (method, status): its path, and ``OK`` or the reason of the failure.
    """

    def __init__(self, quotas: Quotas, pool: Pool, audit: Audit) -> None:
        self.quotas, self.pool, self.audit = quotas, pool, audit
        self.calls: dict[tuple[str, str], Calls] = {}
        self._began = time.monotonic()
        self._registry = CollectorRegistry()
        self._durations = Histogram(
            "kvmd_call_seconds", "How long calls took.", ["method"], registry=self._registry, buckets=_BUCKETS
        )
        self._registry.register(self)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def called(self, method: str, status: str, seconds: float) -> None:
        """Count a call that has ended. Only methods that exist are counted: a client makes no new labels up."""
        calls = self.calls.setdefault((method, status), Calls())
        calls.count += 1
        calls.seconds += seconds
        self._durations.labels(method).observe(seconds)

    def render(self) -> bytes:
        """All of it, as Prometheus's text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What is counted elsewhere, at this moment."""
        calls = CounterMetricFamily("kvmd_calls", "Calls by method and outcome.", labels=["method", "status"])
        for (method, status), counted in self.calls.items():
            calls.add_metric([method, status], counted.count)
        yield calls
        yield from self._limits()
        records = CounterMetricFamily("kvmd_audit_records", "Audit records by outcome.", labels=["outcome"])
        records.add_metric(["written"], self.audit.written)
        records.add_metric(["lost"], self.audit.lost)
        yield records
        ended = CounterMetricFamily("kvmd_workers_ended", "Workers by why they ended.", labels=["reason"])
        for reason, count in self.pool.ended.items():
            ended.add_metric([reason], count)
        yield ended
        yield GaugeMetricFamily("kvmd_uptime_seconds", "Seconds since the daemon's start.", value=self.uptime)

    def _limits(self) -> Iterator[Metric]:
        quotas = list(self.quotas.all.values())
        rate, flow, bounds = self.quotas.rate, self.quotas.flow, self.pool.bounds
        used = [(quota.name, quota.used) for quota in quotas]
        most = [(quota.name, quota.most) for quota in quotas]
        most += [(rate.name, rate.most), ("worker_memory", bounds.memory), ("worker_cpu", bounds.cpu)]
        share = [(quota.name, quota.most_per_owner) for quota in quotas]
        share += [(each.name, each.most_per_owner) for each in (rate, flow)]
        yield _gauge("kvmd_limit_used", "How much of a limit is used, by all.", used)
        yield _gauge("kvmd_limit_most", "The limit for all, or for one worker.", most)
        yield _gauge("kvmd_limit_most_per_owner", "The limit for one identity.", share)
        refused = CounterMetricFamily("kvmd_limit_refused", "Refusals, or waits, for a limit.", labels=["limit"])
        counts = [(quota.name, quota.refused) for quota in quotas]
        for name, count in [*counts, (rate.name, rate.refused), (flow.name, flow.waits)]:
            refused.add_metric([name], count)
        yield refused


def _gauge(name: str, told: str, values: list[tuple[str, int]]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, told, labels=["limit"])
    for limit, value in values:
        gauge.add_metric([limit], value)
    return gauge
