"""Clients that misbehave: nothing of theirs stays behind, and others are served meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import libkvm
from clients import PREFACE, call_headers, connect, frame
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from kvmd.v1 import memory_pb2
from procs import descriptors, eventually, nothing_left, resident, workers

QEMU = fixture("qemu/vmcore.kdump")
OPEN = pb.OpenRequest(corefile=str(QEMU.path))


@contextlib.contextmanager
def serving(config: str = "") -> Iterator[Daemon]:
    with running_daemon([QEMU.path.parent], config) as daemon:
        yield daemon


def banner(daemon: Daemon) -> bytes:
    """What a client that behaves gets."""
    with libkvm.connect(daemon.target) as client, client.open(corefile=QEMU.path) as kernel:
        return kernel.read(QEMU.truth["kallsyms"]["linux_banner"], 13)


def records(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]


def test_opens_cancelled_at_any_moment() -> None:
    """Nothing stays open, every open is on the record once, closed once if it was opened, and the log is silent."""
    with serving("[limits]\nworker_linger = 0\ndescriptors_per_uid = 4096\n") as daemon:
        pid = daemon.process.pid
        assert banner(daemon) == b"Linux version"
        with nothing_left(pid), grpc.insecure_channel(daemon.target) as channel:
            stub = rpc.KvmServiceStub(channel)
            for turn in range(60):
                call = stub.Open.future(OPEN)
                time.sleep(0.5 * (turn / 60) ** 3)
                call.cancel()
            for turn in range(10):
                with contextlib.suppress(grpc.RpcError):
                    stub.Open(OPEN, timeout=0.04 * turn + 0.001)
        eventually(lambda: len(workers(pid)) <= 1, 5)

        def told(event: str) -> list[dict[str, Any]]:
            return [record for record in records(daemon) if record["event"] == event]

        def opened() -> list[str]:
            return sorted(record["descriptor"] for record in told("open") if record["status"] == "OK")

        eventually(lambda: opened() == sorted(record["descriptor"] for record in told("close")), 5)
        assert len(set(opened())) == len(opened())
        assert {record["status"] for record in told("open")} <= {"OK", "CANCELLED"}
        assert banner(daemon) == b"Linux version"
    assert not any(b"never retrieved" in line or b"Traceback" in line for line in daemon.log)


def test_a_name_forges_no_audit_record() -> None:
    """Not even by a failure that nobody waits for any more."""
    forged = b'audit: {"event": "open", "peer": "uid:4242"}'
    with serving() as daemon:
        with grpc.insecure_channel(daemon.target) as channel:
            stub = rpc.KvmServiceStub(channel)
            for turn in range(60):
                call = stub.Open.future(pb.OpenRequest(corefile=f"x\n{forged.decode()}\n"))
                time.sleep(0.0001 * turn)
                call.cancel()
                with contextlib.suppress(grpc.RpcError):
                    stub.Open(pb.OpenRequest(corefile=f"x\n{forged.decode()}\n"), timeout=0.0002 * turn + 1e-4)
        banner(daemon)
    assert not any(line.startswith(forged) for line in daemon.log)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_calls_that_never_send_their_request_hold_nobody_up() -> None:
    """A user whom the policy denies everything opens more calls than there may be, and finishes none."""
    code = """
import os, socket, sys
os.setgroups([]); os.setresgid(4002, 4002, 4002); os.setresuid(4002, 4002, 4002)
preface, call = bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
socks = []
for _ in range(20):
    socks.append(socket.socket(socket.AF_UNIX))
    socks[-1].connect(sys.argv[1])
    socks[-1].sendall(preface)
    for number in range(100):
        socks[-1].sendall(call[:5] + (2 * number + 1).to_bytes(4, "big") + call[9:])
print("sent", flush=True)
sys.stdin.read()
"""
    call = frame(1, 4, 1, call_headers(b"/kvmd.v1.KvmService/Open"))
    with serving("[limits]\ncall_deadline = 3\n") as daemon:
        words = [daemon.target.removeprefix("unix:"), (PREFACE + frame(4, 0, 0)).hex(), call.hex()]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", code, *words], **pipes) as client:
            assert client.stdout.readline() == b"sent\n"
            for _ in range(5):
                assert banner(daemon) == b"Linux version"
                time.sleep(0.1)
            client.kill()


def test_streams_that_nobody_reads() -> None:
    """Memory is bounded by the calls that a user may have under way, and all goes with the calls."""
    with serving("[limits]\ncalls_per_uid = 40\n") as daemon:
        pid = daemon.process.pid
        banner(daemon)

        before = resident(pid)
        with nothing_left(pid), grpc.insecure_channel(daemon.target) as channel:
            stub = rpc.KvmServiceStub(channel)
            request = memory_pb2.ReadStreamRequest(descriptor=stub.Open(OPEN).descriptor, length=1 << 34, space=2)
            streams = [stub.ReadStream(request) for _ in range(200)]
            time.sleep(2)
            assert resident(pid) - before < 40 * 5 << 20
            for stream in streams:
                stream.cancel()
        assert banner(daemon) == b"Linux version"


def test_garbage_and_silence() -> None:
    """Connections that send nothing, half a preface, garbage, headers without end or pings without end."""
    with serving() as daemon, nothing_left(daemon.process.pid), contextlib.ExitStack() as stack:
        settings = PREFACE + frame(4, 0, 0)
        endless = frame(1, 0, 1, call_headers(b"/x")) + frame(9, 0, 1, b"\0\1a\x7f\0" + b"b" * 127) * 2000
        pings = frame(6, 0, 0, bytes(8)) * 2000
        for data in (b"", PREFACE[:10], os.urandom(5000), settings + endless, settings + pings):
            sock = stack.enter_context(connect(daemon.target))
            with contextlib.suppress(OSError):
                sock.sendall(data)
        for _ in range(40):
            stack.enter_context(connect(daemon.target))
        assert banner(daemon) == b"Linux version"


def test_watching_health() -> None:
    with serving() as daemon, grpc.insecure_channel(daemon.target) as channel:
        changes = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=10)
        assert next(changes).status == health_pb2.HealthCheckResponse.SERVING
        daemon.process.send_signal(signal.SIGTERM)
        assert next(changes).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_audit_that_can_not_be_written() -> None:
    """Nothing is opened without a record; denials stay denials; nothing leaks; and what is open can be closed."""
    with serving('[audit]\nfile = "/dev/full"\n[limits]\nworker_linger = 0\n') as daemon:
        pid = daemon.process.pid
        before = descriptors(pid)
        with libkvm.connect(daemon.target) as client:
            for _ in range(3):
                with pytest.raises(libkvm.KvmError, match="audit record") as failure:
                    client.open(corefile=QEMU.path)
                assert failure.value.reason.value == "INTERNAL"
            with pytest.raises(libkvm.KvmError) as failure:
                client.open(corefile="/etc/passwd")
            assert failure.value.reason.value == "PATH_OUTSIDE"
            eventually(lambda: len(workers(pid)) <= 1, 5)
        eventually(lambda: descriptors(pid) <= before, 5)
    assert any(b"an audit record is lost: No space left" in line for line in daemon.log)


def test_as_many_files_as_the_system_allows() -> None:
    """Each connection costs the daemon four: the usual soft limit of 1024 is soon reached."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with serving() as daemon:
            assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _opening(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    eventually(lambda: workers(daemon.process.pid), 5)
    time.sleep(0.5)
    for worker in workers(daemon.process.pid):
        os.kill(worker, signal.SIGSTOP)
    return [stub.Open.future(OPEN) for _ in range(5)]


def _giving_up(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    calls = _opening(daemon, stub)
    time.sleep(0.2)
    for call in calls:  # type: ignore[attr-defined]
        call.cancel()
    return calls


def _reading(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    request = memory_pb2.ReadRequest(descriptor=stub.Open(OPEN).descriptor, length=8)
    for worker in workers(daemon.process.pid):
        os.kill(worker, signal.SIGSTOP)
    return [stub.Read.future(request) for _ in range(5)]


def _streaming(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    request = memory_pb2.ReadStreamRequest(descriptor=stub.Open(OPEN).descriptor, length=1 << 34, space=2)
    return [stub.ReadStream(request) for _ in range(20)]


def _lingering(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    stub.Close(pb.CloseRequest(descriptor=stub.Open(OPEN).descriptor))
    return [stub.Open.future(OPEN)]


def _dead(daemon: Daemon, stub: rpc.KvmServiceStub) -> object:
    descriptor = stub.Open(OPEN)
    for worker in workers(daemon.process.pid):
        os.kill(worker, signal.SIGKILL)
    return descriptor


@pytest.mark.parametrize("moment", [_opening, _giving_up, _reading, _streaming, _lingering, _dead])
def test_terminated_at_any_moment(moment: Any) -> None:
    """SIGTERM: status 0 in less than 5 s, and no complaints of asyncio's."""
    with serving() as daemon, grpc.insecure_channel(daemon.target) as channel:
        kept = moment(daemon, rpc.KvmServiceStub(channel))
        time.sleep(0.2)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
        del kept
    assert not any(b"Traceback" in line or b"never retrieved" in line for line in daemon.log)


def test_connections_that_go_while_an_image_is_opened() -> None:
    """By the half of its clients: the other half get it, and nothing of the others stays."""
    with serving("[limits]\nworker_linger = 0\n") as daemon:
        banner(daemon)
        got: list[object] = []

        def attempt(stays: bool) -> None:
            with grpc.insecure_channel(daemon.target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
                call = rpc.KvmServiceStub(channel).Open.future(OPEN)
                if stays:
                    got.append(call.result().descriptor)
                else:
                    time.sleep(0.05)

        with nothing_left(daemon.process.pid):
            for _ in range(5):
                threads = [threading.Thread(target=attempt, args=(number % 2 == 1,)) for number in range(6)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        assert len(set(got)) == 15
        eventually(lambda: len(workers(daemon.process.pid)) <= 1, 5)
