"""Who may do what, asked by real processes of other users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon import Daemon, running_daemon
from images import fixture
from procs import as_user

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")

CONFIG = """
[[policy]]
subjects = ["uid:4001"]
images = ["dump:*"]
verbs = ["info", "symbols", "read", "processes"]

[[policy]]
subjects = ["gid:4100"]
images = ["dump:*"]
verbs = ["info"]

[[policy]]
subjects = ["uid:4003"]
images = ["dump:*"]
verbs = ["*"]
"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with running_daemon([fixture("qemu/vmcore.kdump").path.parent], CONFIG) as running:
        yield running


TRY = """
def reason(call):
    try:
        call()
    except libkvm.KvmError as failure:
        return failure.reason.value
    return "OK"
with libkvm.connect(words[0]) as client:
    try:
        kernel = client.open(corefile=words[1])
    except libkvm.KvmError as failure:
        answer = {"open": failure.reason.value}
    else:
        with kernel:
            address = int(words[2])
            answer = {
                "open": "OK",
                "read": reason(lambda: kernel.read(address, 8)),
                "log": reason(lambda: list(kernel.log())),
                "processes": reason(lambda: list(kernel.processes())),
                "arguments": reason(lambda: list(kernel.processes(arguments=True))),
                "environment": reason(lambda: kernel.environ(1)),
            }
"""


def attempts(daemon: Daemon, uid: int, groups: tuple[int, ...] = ()) -> object:
    image = fixture("qemu/vmcore.kdump")
    return as_user(uid, TRY, daemon.target, image.path, image.truth["kallsyms"]["linux_banner"], groups=groups)


def test_named_user_gets_its_verbs_and_no_others(daemon: Daemon) -> None:
    denied = "POLICY_DENIED"
    expected = {"open": "OK", "read": "OK", "processes": "OK"}
    assert attempts(daemon, 4001) == {**expected, "log": denied, "arguments": denied, "environment": denied}


def test_user_with_all_verbs(daemon: Daemon) -> None:
    assert set(attempts(daemon, 4003).values()) == {"OK"}


def test_user_that_no_rule_names_is_refused(daemon: Daemon) -> None:
    assert attempts(daemon, 4002) == {"open": "POLICY_DENIED"}


def test_group_counts_as_the_kernel_knows_it(daemon: Daemon) -> None:
    """A supplementary group that stands in no file."""
    answer = attempts(daemon, 4002, groups=(4100,))
    assert (answer["open"], answer["read"]) == ("OK", "POLICY_DENIED")


def test_denial_is_the_same_whether_or_not_the_file_exists(daemon: Daemon) -> None:
    code = """
def text(name):
    try:
        libkvm.connect(words[0]).__enter__().open(corefile=name)
    except libkvm.KvmError as failure:
        return [failure.reason.value, failure.message.replace(name, "NAME")]
answer = [text(words[1]), text(words[1] + "-none")]
"""
    there, not_there = as_user(4002, code, daemon.target, fixture("qemu/vmcore.kdump").path)
    assert there == not_there
    assert there[0] == "POLICY_DENIED"


def test_strangers_descriptor_answers_as_an_unknown_one(daemon: Daemon) -> None:
    """Another uid that has the id, and a made-up id, get the same status to the letter."""
    owner = """
import grpc
stub = rpc.KvmServiceStub(grpc.insecure_channel(words[0]))
id = stub.Open(pb.OpenRequest(corefile=words[1])).descriptor
print(id, flush=True, file=sys.stderr)
sys.stdin.readline()
answer = stub.Close(pb.CloseRequest(descriptor=id)) == pb.CloseResponse()
"""
    stranger = """
import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
name = lambda value: error_details_pb2.ErrorInfo.FromString(value).metadata["request"]
stub = rpc.KvmServiceStub(grpc.insecure_channel(words[0]))
answer = []
for id in words[1], "made-up":
    read = memory_pb2.ReadRequest(descriptor=id, length=8)
    for call, request in (stub.Close, pb.CloseRequest(descriptor=id)), (stub.Read, read):
        try:
            call(request)
            answer.append("OK")
        except grpc.RpcError as failure:
            [info] = rpc_status.from_call(failure).details
            told = info.value.decode().replace(name(info.value), "REQUEST")
            answer.append([failure.code().name, failure.details(), told])
"""
    program = (
        "import json, os, sys, libkvm.transports.grpc\n"
        "from kvmd.v1 import kvm_service_pb2 as pb, kvm_service_pb2_grpc as rpc, memory_pb2\n"
        "os.setgroups([]); os.setresgid(4001, 4001, 4001); os.setresuid(4001, 4001, 4001)\n"
        f"words = json.loads(sys.argv[1])\n{owner}\njson.dump(answer, sys.stdout)\n"
    )
    words = json.dumps([daemon.target, str(fixture("qemu/vmcore.kdump").path)])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program, words], **pipes) as process:
        id_ = process.stderr.readline().decode().strip()
        answers = as_user(4003, stranger, daemon.target, id_)
        process.stdin.close()
        assert json.load(process.stdout) is True
    assert answers[:2] == answers[2:]
    assert answers[0][0] == "NOT_FOUND"
    assert "REQUEST" in answers[0][2]


def test_audit_names_the_peer(daemon: Daemon, tmp_path: Path) -> None:
    """One line a connection, an open, a denial and a close, and no descriptor id in clear."""
    audit = tmp_path / "audit"
    with running_daemon([fixture("qemu/vmcore.kdump").path.parent], f'[audit]\nfile = "{audit}"\n{CONFIG}') as running:
        attempts(running, 4001)
        attempts(running, 4002)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    events = [(line["event"], line["peer"], line.get("verb")) for line in lines]
    assert events[:2] == [("connect", "uid:4001", None), ("open", "uid:4001", None)]
    assert [event for event in events if event[0] == "denied"] == [
        ("denied", "uid:4001", "log"),
        ("denied", "uid:4001", "arguments"),
        ("denied", "uid:4001", "environment"),
        ("denied", "uid:4002", "info"),
    ]
    assert events.count(("close", "uid:4001", None)) == 1
    assert all(line["pid"] > 0 and line["exe"] for line in lines)
    opened = lines[1]
    assert opened["status"] == "OK"
    assert opened["descriptor"] == next(line["descriptor"] for line in lines if line["event"] == "close")
    assert len(opened["descriptor"]) == 12
