"""The admin service of a real daemon, by kvmctl; what it ends is ended for its owner."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import libkvm
from daemon import Daemon, running_daemon
from images import fixture
from kvmd.v1 import admin_pb2
from procs import as_user, eventually

DUMP = fixture("qemu/vmcore.kdump").path
METRICS = "[metrics]\nlisten = 'unix:{}'\n"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon([DUMP.parent], METRICS.format(tmp_path / "metrics.sock")) as running:
        yield running


def admin(daemon: Daemon, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "libkvm", "--target", daemon.target, "--json", "admin", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def records(daemon: Daemon, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line[7:]) for line in list(daemon.log) if line.startswith(b"audit: ")]
    return [line for line in lines if line["event"] == event]


def test_what_is_open(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client, client.open(corefile=DUMP) as kernel:
        kernel._direct.drop()
        kernel.read(kernel.symbol("jiffies").value, 8)
        [handle] = admin(daemon, "handles")["handles"]
        [worker] = admin(daemon, "workers")["workers"]
        mine = [each for each in admin(daemon, "connections")["connections"] if each["pid"] == os.getpid()]
        stats = admin(daemon, "stats")
        assert (handle["peer"], handle["image"]) == (f"uid:{os.geteuid()}", f"dump:{DUMP}")
        assert handle["tag"] == records(daemon, "open")[0]["descriptor"]
        assert (worker["pid"], worker["handles"], worker["image"]) == (handle["worker"], 1, handle["image"])
        assert worker["memory"] > 1 << 20
        assert (len(mine), mine[0]["handles"], mine[0]["id"]) == (1, 1, handle["connection"])
        limits = {each["name"]: each for each in stats["limits"]}
        assert (limits["descriptors"]["used"], limits["workers"]["used"]) == (1, 1)
        calls = {(each["method"], each["status"]): each["count"] for each in stats["calls"]}
        assert calls["/kvmd.v1.KvmService/Read", "OK"] == 1
    assert admin(daemon, "handles")["handles"] == []


def why(kernel: libkvm.Kernel) -> str:
    """Why nothing can be read at address 0."""
    with pytest.raises(libkvm.KvmError) as failure:
        kernel.read(0, 8)
    return failure.value.reason.value


@pytest.mark.parametrize(
    ("which", "key", "option", "reason"),
    [
        ("handles", "tag", None, "NO_SUCH_DESCRIPTOR"),
        ("workers", "pid", "--worker", "WORKER_DIED"),
        ("handles", "connection", "--connection", ""),
    ],
)
def test_what_is_ended_is_ended_for_its_owner_only(
    daemon: Daemon, which: str, key: str, option: str | None, reason: str
) -> None:
    other = fixture("la57/vmcore.kdump")
    with running_daemon([DUMP.parent, other.path.parent]) as both, libkvm.connect(both.target) as client:
        kernel = client.open(corefile=DUMP)
        with libkvm.connect(both.target) as another, another.open(corefile=other.path) as untouched:
            found = next(each for each in admin(both, which)[which] if each["image"] == f"dump:{DUMP}")
            admin(both, "close", *([option] if option else []), str(found[key]))
            eventually(lambda: why(kernel) != "NOT_MAPPED", 3)
            assert why(kernel) in ([reason] if reason else ["UNREACHABLE", "NO_SUCH_DESCRIPTOR"])
            assert untouched.read(untouched.symbol("linux_banner").value, 5) == b"Linux"
        [record] = records(both, "admin")
        assert record["peer"] == f"uid:{os.geteuid()}"


def test_what_is_not_there_can_not_be_ended(daemon: Daemon) -> None:
    for words in (["none"], ["--worker", "1"], ["--connection", "7"]):
        command = [sys.executable, "-m", "libkvm", "--target", daemon.target, "admin", "close", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, "no such handle, connection or worker" in done.stderr) == (1, True)


def test_only_on_its_own_socket(daemon: Daemon) -> None:
    path = daemon.target.removeprefix("unix:")
    socket = os.path.splitext(path)[0] + "-admin.sock"
    assert stat.S_IMODE(os.stat(socket).st_mode) == 0o600
    with grpc.insecure_channel(daemon.target) as channel:
        call = channel.unary_unary("/kvmd.v1.AdminService/ListHandles")
        with pytest.raises(grpc.RpcError) as failure:
            call(admin_pb2.ListHandlesRequest().SerializeToString())
        assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0")
def test_not_for_other_users(daemon: Daemon) -> None:
    path = os.path.splitext(daemon.target.removeprefix("unix:"))[0] + "-admin.sock"
    code = """
import socket
try:
    socket.socket(socket.AF_UNIX).connect(words[0])
    answer = "connected"
except PermissionError:
    answer = "refused"
"""
    assert as_user(4001, code, path) == "refused"


def test_an_error_names_the_request_that_the_record_names(daemon: Daemon) -> None:
    with libkvm.connect(daemon.target) as client, pytest.raises(libkvm.KvmError) as failure:
        client.open(corefile="/etc/passwd")
    eventually(lambda: len(records(daemon, "open")) == 1, 3)
    [record] = records(daemon, "open")
    assert failure.value.metadata["request"] == record["request"]
    command = [sys.executable, "-m", "libkvm", "--target", daemon.target, "info", "-M", "/etc/passwd"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    eventually(lambda: len(records(daemon, "open")) == 2, 3)
    assert f"[request {records(daemon, 'open')[1]['request']}]" in said


def test_reads_are_put_on_the_record_as_they_add_up() -> None:
    with running_daemon([DUMP.parent], "[audit]\nread_bytes = 8000\n") as daemon:
        with libkvm.connect(daemon.target) as client, client.open(corefile=DUMP) as kernel:
            kernel._direct.drop()  # tests/e2e/fast has what is read directly
            page = kernel.symbol("linux_banner").value & ~0xFFF
            for _ in range(2):
                kernel.read(page, 0x1000)
                kernel.read(page + 0x80, 0xF80)
            kernel.read(page + 8, 16)
        eventually(lambda: len(records(daemon, "close")) == 1, 3)
        reads = records(daemon, "read")
    assert [(read["calls"], read["bytes"] > 8000) for read in reads] == [(2, True), (2, True), (1, False)]
    assert (reads[0]["low"], reads[0]["high"]) == (f"{page:#x}", f"{page + 0x1000:#x}")
    assert (reads[2]["low"], reads[2]["high"]) == (f"{page + 8:#x}", f"{page + 24:#x}")
    assert all("data" not in read for read in reads)


def test_the_log_as_json() -> None:
    with running_daemon([DUMP.parent], '[log]\nformat = "json"\nlevel = "debug"\n') as daemon:
        with libkvm.connect(daemon.target) as client, pytest.raises(libkvm.KvmError) as failure:
            client.open(corefile="none")
        lines = [json.loads(line) for line in list(daemon.log) if line.startswith(b"{")]
    assert any(line["message"].startswith("ready on unix:") for line in lines)
    mine = [line for line in lines if line.get("request") == failure.value.metadata["request"]]
    assert any("SOURCE_NOT_FOUND" in line["message"] and line["level"] == "debug" for line in mine)


def test_doctor_says_why_and_what_to_do(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "libkvm", "--target", daemon.target, "--json", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    findings = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert findings["socket"]["status"] == "ok"
    assert f"process {daemon.process.pid} of uid {os.geteuid()}" in findings["daemon"]["told"]
    if os.path.exists("/proc/kcore"):
        pytest.skip("a host whose kernel can be opened")
    assert done.returncode == 1
    assert (findings["open"]["status"], findings["open"]["told"].partition(":")[0]) == ("FAIL", "NO_LIVE_SOURCE")
    assert "container" in findings["open"]["remedy"]


def test_doctor_without_a_daemon(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "libkvm", "--target", f"unix:{tmp_path}/none", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "FAIL socket:" in done.stdout
    assert "systemctl enable --now kvmd.socket" in done.stdout
