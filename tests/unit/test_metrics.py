"""Metrics, and how Prometheus asks for them: with a client of its own format."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kvmd import exposition
from kvmd.access.limits import Quotas
from kvmd.config import ConfigError, Limits, MetricsSettings, parse
from kvmd.exposition import serving
from kvmd.front.lock import ListenError
from kvmd.metrics import Metrics
from kvmd.prometheus import text


@pytest.fixture
def metrics() -> Metrics:
    pool: Any = SimpleNamespace(ended=Counter(WORKER_DIED=2), bounds=SimpleNamespace(memory=1 << 30, cpu=60))
    audit: Any = SimpleNamespace(written=7, lost=1)
    return Metrics(Quotas(Limits(streams=3)), pool, audit)


def samples(page: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def test_what_is_counted(metrics: Metrics) -> None:
    metrics.called("/kvmd.v1.KvmService/Read", "OK", 0.002)
    metrics.called("/kvmd.v1.KvmService/Read", "OK", 0.2)
    metrics.called("/kvmd.v1.KvmService/Read", "EXCLUDED", 0.1)
    metrics.quotas["streams"].take("uid:1", 2)
    found = samples(text(metrics))
    assert found["kvmd_calls_total", "/kvmd.v1.KvmService/Read", "OK"] == 2
    assert found["kvmd_calls_total", "/kvmd.v1.KvmService/Read", "EXCLUDED"] == 1
    assert found["kvmd_call_seconds_count", "/kvmd.v1.KvmService/Read"] == 3
    assert found["kvmd_call_seconds_sum", "/kvmd.v1.KvmService/Read"] == pytest.approx(0.302)
    for bound, count in {"0.001": 0, "0.0025": 1, "0.1": 2, "+Inf": 3}.items():
        assert found["kvmd_call_seconds_bucket", bound, "/kvmd.v1.KvmService/Read"] == count
    assert (found["kvmd_limit_used", "streams"], found["kvmd_limit_most", "streams"]) == (2, 3)
    assert found["kvmd_limit_most", "worker_memory"] == 1 << 30
    assert found["kvmd_audit_records_total", "written"] == 7
    assert found["kvmd_audit_records_total", "lost"] == 1
    assert found["kvmd_workers_ended_total", "WORKER_DIED"] == 2
    assert 0 <= found["kvmd_uptime_seconds",] < 60


def test_every_limit_has_a_metric(metrics: Metrics) -> None:
    found = samples(text(metrics))
    for name in ("connections", "descriptors", "workers", "calls", "streams", "inflight_bytes", "calls_per_second"):
        for metric in ("kvmd_limit_most", "kvmd_limit_most_per_owner", "kvmd_limit_refused_total"):
            assert (metric, name) in found
    for metric in ("kvmd_limit_most_per_owner", "kvmd_limit_refused_total"):
        assert (metric, "received_bytes_per_second") in found


async def ask(path: str, request: bytes) -> bytes:
    """What is answered before the connection is closed."""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(-1), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_over_a_unix_socket(metrics: Metrics, tmp_path: Path) -> None:
    path = str(tmp_path / "m.sock")
    async with serving(MetricsSettings(listen=f"unix:{path}", mode=0o600), metrics):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        head, _, body = (await ask(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert samples(body)["kvmd_limit_most", "streams"] == 3
        assert (await ask(path, b"HEAD /metrics HTTP/1.1\r\n\r\n")).endswith(b"\r\n\r\n")
        assert b" 404 " in await ask(path, b"GET / HTTP/1.1\r\n\r\n")
        assert b" 405 " in await ask(path, b"POST /metrics HTTP/1.1\r\n\r\n")
        assert await ask(path, b"x" * 20000) == b""
        with pytest.raises(ListenError):
            async with serving(MetricsSettings(listen=f"unix:{path}"), metrics):
                pass
    assert os.listdir(tmp_path) == ["m.sock.lock"]


async def test_over_the_loopback(metrics: Metrics) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with serving(MetricsSettings(listen=f"127.0.0.1:{port}"), metrics):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert b"kvmd_uptime_seconds" in await asyncio.wait_for(reader.read(-1), 10)
        writer.close()


async def test_who_never_finishes_a_request_is_cut(
    metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "_PATIENCE", 0.1)
    path = str(tmp_path / "m.sock")
    async with serving(MetricsSettings(listen=f"unix:{path}"), metrics):
        assert await asyncio.gather(*(ask(path, b"GET /met") for _ in range(40))) == [b""] * 40
        assert b" 200 OK" in await ask(path, b"GET /metrics HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize("where", ["0.0.0.0:80", "unix:relative", "127.0.0.1", "10.0.0.1:9", "localhost:9"])
def test_nowhere_else(where: str) -> None:
    with pytest.raises(ConfigError, match=r"f:2: metrics\.listen: must be"):
        parse(f'[metrics]\nlisten = "{where}"\n', "f")
