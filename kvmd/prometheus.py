"""What the daemon counts, as Prometheus's text format. Imported by who is asked for it: that takes as long as grpc."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from kvmd.metrics import BOUNDS, Metrics


def text(metrics: Metrics) -> bytes:
    """All of it, at this moment."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Counts(metrics))
    return generate_latest(registry)


class _Counts(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self._calls()
        yield from self._limits()
        audit, ended = self._metrics.audit, self._metrics.pool.ended
        outcomes = {"written": audit.written, "lost": audit.lost}
        yield _counter("kvmd_audit_records", "Audit records by outcome.", "outcome", outcomes)
        yield _counter("kvmd_workers_ended", "Workers by why they ended.", "reason", ended)
        yield GaugeMetricFamily("kvmd_uptime_seconds", "Seconds since the daemon's start.", value=self._metrics.uptime)

    def _calls(self) -> Iterator[Metric]:
        durations = HistogramMetricFamily("kvmd_call_seconds", "How long calls took.", labels=["method"])
        for method, took in self._metrics.durations.items():
            classes = zip([*map(str, map(float, BOUNDS)), "+Inf"], accumulate(took.counts), strict=True)
            durations.add_metric([method], list(classes), took.seconds)
        yield durations
        calls = CounterMetricFamily("kvmd_calls", "Calls by method and outcome.", labels=["method", "status"])
        for (method, status), counted in self._metrics.calls.items():
            calls.add_metric([method, status], counted.count)
        yield calls

    def _limits(self) -> Iterator[Metric]:
        quotas, bounds = self._metrics.quotas, self._metrics.pool.bounds
        held, rate, flow = quotas.all.values(), quotas.rate, quotas.flow
        used = {quota.name: quota.used for quota in held}
        most = {quota.name: quota.most for quota in held}
        most |= {rate.name: rate.most, "worker_memory": bounds.memory, "worker_cpu": bounds.cpu}
        share = {quota.name: quota.most_per_owner for quota in held}
        share |= {each.name: each.most_per_owner for each in (rate, flow)}
        yield _gauge("kvmd_limit_used", "How much of a limit is used, by all.", used)
        yield _gauge("kvmd_limit_most", "The limit for all, or for one worker.", most)
        yield _gauge("kvmd_limit_most_per_owner", "The limit for one identity.", share)
        refused = {quota.name: quota.refused for quota in held}
        refused |= {rate.name: rate.refused, flow.name: flow.waits}
        yield _counter("kvmd_limit_refused", "Refusals, or waits, for a limit.", "limit", refused)


def _gauge(name: str, told: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, told, labels=["limit"])
    for limit, value in values.items():
        gauge.add_metric([limit], value)
    return gauge


def _counter(name: str, told: str, label: str, values: Mapping[str, int]) -> CounterMetricFamily:
    counter = CounterMetricFamily(name, told, labels=[label])
    for word, value in values.items():
        counter.add_metric([word], value)
    return counter
