"""Who may do what, asked by real processes of other users."""

from __future__ import annotations

import json
import os
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
