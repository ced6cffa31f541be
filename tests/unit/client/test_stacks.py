"""Kernel stacks in the Python face and in kvmctl, against a fake image."""

from __future__ import annotations

import json

import pytest

import libkvm
from kvmd.errors import Reason
from libkvm import cli
from unit.client.fake_system import BASE


def test_one_by_pid_by_process_and_by_cpu(kernel):
    stack = kernel.stack(1)

    assert (stack.pid, stack.comm, stack.task_address, stack.cpu) == (1, "evil\x1b", BASE + 1, None)
    assert [(frame.symbol, frame.kind) for frame in stack.frames] == [
        ("inner", "inline"),
        ("outer", "interrupted"),
        ("in\x1bmodule", "found"),
        ("", "call"),
    ]
    assert stack.frames[2] == libkvm.Frame(BASE + 9, "in\x1bmodule", 8, "m", "found")
    assert (stack.end, stack.complete, stack.error) == ("user", True, None)
    assert kernel.stack(kernel.processes(pid=1)[0]) == stack
    assert kernel.stack(cpu=3).cpu == 3
    assert kernel.stack(cpu=0).cpu == 0


def test_what_stopped_it_is_told(kernel):
    stack = kernel.stack(2)

    assert (stack.end, stack.complete, len(stack.frames)) == ("fault", False, 4)
    assert isinstance(stack.error, libkvm.FaultError)
    assert stack.error.address == BASE


def test_all_have_their_own_errors(kernel):
    whole, torn, failed = kernel.stacks()

    assert (whole.cpu, torn.end) == (3, "fault")
    assert (failed.pid, failed.end, failed.frames) == (30, "unspecified", ())
    assert failed.error.reason is Reason.TASK_RUNNING


def test_failures(kernel):
    with pytest.raises(libkvm.ProcessError):
        kernel.stack(77)
    for wrong in ({}, {"task": 1, "cpu": 1}):
        with pytest.raises(TypeError):
            kernel.stack(**wrong)
    for task, cpu in ((1 << 31, None), (None, -1), (None, 1 << 16)):
        with pytest.raises(libkvm.RequestError):
            kernel.stack(task, cpu=cpu)


@pytest.fixture
def kvmctl(target, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        status = cli.main(("bt", *words))
        return status, *capsys.readouterr()

    return run


def test_bt_of_one(kvmctl):
    status, out, _ = kvmctl("1")

    assert status == 0
    assert out.splitlines() == [
        rf"PID: 1  TASK: {BASE + 1:016x}  COMMAND: evil\x1b",
        "#0   ffffffff81000001 inner (inlined)",
        "#1   ffffffff81000001 outer+0x1 <interrupted>",
        r"#2   ffffffff81000009 in\x1bmodule+0x8 [m] (found by search)",
        "#3   ffffffff81000063 ?",
        "    from user space",
    ]
    assert kvmctl("-c", "2")[1].startswith(f"PID: 1  TASK: {BASE + 1:016x}  CPU: 2  COMMAND")


def test_bt_of_all(kvmctl):
    status, out, _ = kvmctl("-a")

    assert status == 0
    assert out.count("PID: ") == 3
    assert "    stopped: left out\n\nPID: 30" in out
    assert out.endswith("    stopped: runs\n")


def test_bt_json(kvmctl):
    document = json.loads(kvmctl("--json", "-a")[1])

    assert [stack["pid"] for stack in document["stacks"]] == [1, 2, 30]
    assert document["stacks"][0]["frames"][1] == {
        "pc": BASE + 1,
        "symbol": "outer",
        "offset": 1,
        "module": "",
        "kind": "interrupted",
    }
    assert document["stacks"][2]["error"]["reason"] == "TASK_RUNNING"


def test_bt_needs_one_of_them(kvmctl, capsys):
    for words in ((), ("1", "-a"), ("-c", "1", "-a")):
        with pytest.raises(SystemExit) as caught:
            kvmctl(*words)
        assert caught.value.code == 2
    capsys.readouterr()
    assert kvmctl("77") == (1, "", "kvmctl: no process has the id 77\n")
