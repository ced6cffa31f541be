"""Start, stop, reload, and clients that vanish."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import libkvm
from daemon import running_daemon
from images import fixture
from procs import descriptors, eventually, nothing_left

CLIENT = """
import sys, libkvm
kernel = libkvm.connect(sys.argv[1]).open(corefile=sys.argv[2])
kernels = [libkvm.connect(sys.argv[1]).open(corefile=sys.argv[2]) for _ in range(3)]
print("open", flush=True)
sys.stdin.read()
"""


def kvmd(*words: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kvmd", *words], capture_output=True, text=True, timeout=30, **more)


def test_killed_client_leaves_nothing(tmp_path: Path) -> None:
    """kill -9: its descriptors are closed within a second, and no file stays open."""
    audit = tmp_path / "audit"
    image = fixture("qemu/vmcore.kdump").path
    with running_daemon([image.parent], f'[audit]\nfile = "{audit}"\n') as daemon:
        with libkvm.connect(daemon.target) as first:
            first.open(corefile=image).close()  # the worker and what it costs
        with nothing_left(daemon.process.pid):
            command = [sys.executable, "-c", CLIENT, daemon.target, str(image)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
                assert client.stdout.readline() == b"open\n"
                before = audit.read_text().count('"close"')
                client.kill()
                took = eventually(lambda: audit.read_text().count('"close"') == before + 4, 1.0)
    assert took < 1.0


def test_terminated_in_the_middle_of_a_stream() -> None:
    """SIGTERM ends the daemon within 5 s with status 0, whatever clients are doing, and leaves no socket."""
    image = fixture("qemu/vmcore.kdump")
    with running_daemon([image.path.parent]) as daemon:
        client = libkvm.connect(daemon.target)
        kernel = client.open(corefile=image.path)
        stream = kernel.stream(0, 1 << 40, physical=True)
        idle = socket.socket(socket.AF_UNIX)
        idle.connect(daemon.target.removeprefix("unix:"))
        stopped = threading.Event()

        def drain() -> None:
            try:
                next(stream)
                for _ in stream:
                    pass
            except libkvm.KvmError:
                stopped.set()

        thread = threading.Thread(target=drain)
        thread.start()
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 5
        thread.join()
        idle.close()
        folder = Path(daemon.target.removeprefix("unix:")).parent
        assert sorted(path.name for path in folder.iterdir()) == ["kvmd-admin.sock.lock", "kvmd.sock.lock", "kvmd.toml"]
        with pytest.raises(libkvm.UnavailableError):
            kernel.read(0, 8)
        client.close()


def test_one_instance_a_socket() -> None:
    with running_daemon() as daemon:
        second = kvmd("--listen", daemon.target)
        assert second.returncode == 1
        assert "another kvmd" in second.stderr
        with libkvm.connect(daemon.target) as client, pytest.raises(libkvm.SourceNotFoundError):
            client.open(corefile="not-there")  # the first one still answers


def test_starts_over_the_remains_of_a_killed_one(tmp_path: Path) -> None:
    path = str(tmp_path / "kvmd.sock")
    with pytest.raises(AssertionError, match="-9"), running_daemon(path=path) as daemon:
        daemon.process.kill()
    assert Path(path).exists()
    with running_daemon(path=path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_socket_mode_is_the_configured_one_from_the_first_moment(tmp_path: Path) -> None:
    for mode, expected in ((None, 0o666 if os.geteuid() == 0 else 0o600), ("0o660", 0o660)):
        path = tmp_path / "kvmd.sock"
        with running_daemon(path=str(path), config=f"[listen]\nmode = {mode}\n" if mode else None):
            assert stat.S_IMODE(path.stat().st_mode) == expected
            assert stat.S_IMODE(Path(f"{path}.private").stat().st_mode) == 0o700


def test_check_config(tmp_path: Path) -> None:
    config = tmp_path / "kvmd.toml"
    config.write_text('[[policy]]\nsubjects = ["uid:1"]\nimages = ["live"]\nverbs = ["info"]\n')
    good = kvmd("--check-config", "--config", str(config))
    assert (good.returncode, good.stdout) == (0, f"{config}: 1 rules, no errors\n")
    config.write_text("[listen]\nunx = 1\n")
    bad = kvmd("--check-config", "--config", str(config))
    keys = "unix, mode, admin, tcp, tls_cert, tls_key, tls_client_ca, tls_client_crl"
    told = f"kvmd: {config}:2: listen.unx: unknown key; [listen] has {keys}\n"
    assert (bad.returncode, bad.stderr) == (2, told)
    assert kvmd("--config", str(tmp_path / "none")).returncode == 2
    assert kvmd("--listen", "tcp:1.2.3.4:5").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_reload_takes_effect_on_open_descriptors(tmp_path: Path) -> None:
    """A new policy counts from the next call on; a wrong one changes nothing."""
    image = fixture("qemu/vmcore.kdump")
    code = """
import json, os, sys, libkvm.transports.grpc
os.setgroups([]); os.setresgid(4001, 4001, 4001); os.setresuid(4001, 4001, 4001)
kernel = libkvm.connect(sys.argv[1]).open(corefile=sys.argv[2])
for line in sys.stdin:
    try:
        kernel.read(int(sys.argv[3]), 8)
        print("OK", flush=True)
    except libkvm.KvmError as failure:
        print(failure.reason.value, failure.metadata.get("rule"), flush=True)
os._exit(0)
"""
    rule = '[[policy]]\nsubjects = ["uid:4001"]\nimages = ["dump:*"]\nverbs = ["info"{}]\n'
    with running_daemon([image.path.parent], rule.format(', "read"')) as daemon:
        settings = Path(daemon.target.removeprefix("unix:")).parent / "kvmd.toml"
        words = [daemon.target, str(image.path), str(image.truth["kallsyms"]["linux_banner"])]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with subprocess.Popen([sys.executable, "-c", code, *words], **pipes) as client:

            def read() -> str:
                client.stdin.write("\n")
                return client.stdout.readline().strip()

            def reload(text: str, says: bytes) -> None:
                settings.write_text(text)
                daemon.process.send_signal(signal.SIGHUP)
                eventually(lambda: any(says in line for line in daemon.log), 5)

            assert read() == "OK"
            reload("[[policy]]\nnonsense = 1\n", b"not reloaded")
            assert read() == "OK"
            reload(rule.format(""), b"policy reloaded: 1 rules")
            assert read() == "POLICY_DENIED default"
            client.stdin.close()


def test_descriptor_limit_is_typed_and_per_user() -> None:
    image = fixture("qemu/vmcore.kdump").path
    config = "[limits]\ndescriptors_per_uid = 3\n"
    with running_daemon([image.parent], config) as daemon, libkvm.connect(daemon.target) as client:
        kernels = [client.open(corefile=image) for _ in range(3)]
        with pytest.raises(libkvm.LimitError, match="descriptors_per_uid") as limit:
            client.open(corefile=image)
        assert limit.value.reason.value == "DESCRIPTOR_LIMIT"
        kernels.pop().close()
        client.open(corefile=image).close()


def test_health_and_reflection_are_there() -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    with running_daemon() as daemon, grpc.insecure_channel(daemon.target) as channel:
        for service in ("", "kvmd.v1.KvmService"):
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
        assert "kvmd.v1.KvmService" in {service.name for service in answer.list_services_response.service}


def test_thousand_opens_leave_no_file(tmp_path: Path) -> None:
    image = fixture("qemu/vmcore.kdump").path
    with running_daemon([image.parent]) as daemon, libkvm.connect(daemon.target) as client:
        client.open(corefile=image).close()
        (tmp_path / "text").write_text("this is a text file")
        with nothing_left(daemon.process.pid):
            for turn in range(200):
                client.open(corefile=image).close()
                if turn % 10 == 0:
                    with pytest.raises(libkvm.KvmError):
                        client.open(corefile=str(image) + "-none")
        assert descriptors(daemon.process.pid) < 100


def test_audit_lines_are_json_on_standard_error() -> None:
    image = fixture("qemu/vmcore.kdump").path
    with running_daemon([image.parent]) as daemon:
        with libkvm.connect(daemon.target) as client, pytest.raises(libkvm.KvmError):
            client.open(corefile="/etc/passwd")
        eventually(lambda: sum(line.startswith(b"audit: ") for line in daemon.log) >= 2, 2)
    connect, record, *_ = (json.loads(line[7:]) for line in daemon.log if line.startswith(b"audit: "))
    assert connect["event"] == "connect"
    assert (record["event"], record["core"], record["status"]) == ("open", "/etc/passwd", "PATH_OUTSIDE")
