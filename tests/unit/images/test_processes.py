"""The process list against what the guest's own /proc said, pid by pid."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import pytest
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import task_state_to_char

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux import tasks
from kvmd.images.linux.processes import FILTERS, state_letter
from kvmd.v1 import process_pb2 as pb

TICK = 10_000_000  # nanoseconds of USER_HZ


def listed(opened: Any, **request: Any) -> list[pb.Process]:
    return list(opened.image.processes(pb.GetProcsRequest(**request)))


def expected(truth: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The recorded processes by pid."""
    return {p["pid"]: p for p in truth["processes"]}


def ids(status: dict[str, str], key: str) -> tuple[int, int]:
    real, effective, *_ = map(int, status[key].split())
    return real, effective


def test_all_processes_are_listed_by_ascending_pid(dump: Any) -> None:
    pids = [p.pid for p in listed(dump)]
    recorded = {p["pid"] for p in dump.truth["processes"]}
    assert pids == sorted(set(pids))
    missing = recorded - set(pids)
    assert len(missing) == 1  # the helper that had ended
    assert set(pids) == set(dump.truth["pids_at_end"]) - missing


def test_every_field_is_what_proc_said(dump: Any) -> None:
    truth = expected(dump.truth)
    for p in listed(dump):
        want = truth[p.pid]
        real_uid, euid = ids(want["status"], "Uid")
        real_gid, egid = ids(want["status"], "Gid")
        assert (p.pid, p.tgid, p.ppid) == (want["pid"], int(want["status"]["Tgid"]), want["ppid"])
        assert (p.pgid, p.sid) == (want["pgrp"], want["session"])
        assert (p.nice, p.num_threads) == (want["nice"], want["num_threads"])
        assert (p.uid, p.euid, p.gid, p.egid) == (real_uid, euid, real_gid, egid)
        assert p.start_time_ns // TICK == want["starttime_ticks"]
        assert p.kernel_thread is want["kthread"]
        assert not p.HasField("tty")


def test_comm_is_the_kernels_own(dump: Any) -> None:
    truth = expected(dump.truth)
    for p in listed(dump):
        # /proc shows a worker's comm with its workqueue; task->comm is its beginning.
        name = truth[p.pid]["comm"].encode("utf-8", "surrogateescape")
        assert len(p.comm) <= 15
        assert name[:15] == p.comm or (p.comm.startswith(b"kworker") and name.startswith(p.comm))


def test_state_memory_of_processes_that_did_not_run(dump: Any) -> None:
    for p in listed(dump):
        want = expected(dump.truth)[p.pid]
        if p.pid == 1:  # the recorder: it went on running
            continue
        assert p.state == want["state"]
        if want["kthread"] or want["state"] == "Z":
            assert not p.HasField("vsz_bytes")
            assert not p.HasField("rss_bytes")
        else:
            assert p.vsz_bytes == want["vsize"]
            # The pages of three processes were swapped out after they were recorded.
            assert 0 <= want["rss_pages"] - p.rss_bytes // 4096 <= (want["zoo"] in ("swapped", "filed", "cached"))


def test_threads_are_listed(dump: Any) -> None:
    listing = listed(dump, threads=True)
    pids = {p.pid for p in listed(dump)}
    threads = [(t["tid"], q["pid"]) for q in dump.truth["processes"] for t in q["threads"] if q["pid"] in pids]
    assert [(p.pid, p.tgid) for p in listing] == sorted(threads)
    assert any(p.pid != p.tgid for p in listing)


def test_drgn_walks_to_the_same_tasks(dump: Any) -> None:
    prog = dump.image.kernel.prog
    ours = {p.pid: (p.task_address, p.state) for p in listed(dump, threads=True)}
    theirs = {t.pid.value_(): (t.value_(), task_state_to_char(t)) for t in for_each_task(prog)}
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "argument", "attribute"),
    [
        ("PID", 1, "tgid"),
        ("PGRP", 0, "pgid"),
        ("SESSION", 0, "sid"),
        ("UID", 1000, "euid"),
        ("RUID", 1000, "uid"),
        ("GID", 1000, "egid"),
        ("RGID", 1000, "gid"),
    ],
)
def test_filters_select_by_their_field(qemu: Any, name: str, argument: int, attribute: str) -> None:
    found = listed(qemu, filter=pb.ProcessFilter.Value(f"PROCESS_FILTER_{name}"), argument=argument)
    wanted = [p for p in listed(qemu) if getattr(p, attribute) == argument]
    assert found == wanted
    assert found


def test_filters_of_terminals_and_kernel_threads(qemu: Any) -> None:
    everything = listed(qemu)
    assert listed(qemu, filter=pb.PROCESS_FILTER_TTY, argument=-1) == everything
    assert listed(qemu, filter=pb.PROCESS_FILTER_TTY, argument=os.makedev(4, 64)) == []
    kernel = listed(qemu, filter=pb.PROCESS_FILTER_KTHREAD)
    alive = {p.pid for p in everything}
    assert {p.pid for p in kernel} == {q["pid"] for q in qemu.truth["processes"] if q["kthread"]} & alive
    with_tty = pb.Process(tty=os.makedev(136, 3))
    assert FILTERS[pb.PROCESS_FILTER_TTY](with_tty, os.makedev(136, 3))
    assert not FILTERS[pb.PROCESS_FILTER_TTY](with_tty, -1)


def test_every_filter_of_the_wire_is_known() -> None:
    assert set(FILTERS) == set(pb.ProcessFilter.values())


def test_an_unknown_filter_is_refused(qemu: Any) -> None:
    with pytest.raises(KvmError) as caught:
        listed(qemu, filter=77)
    assert caught.value.reason is Reason.BAD_ARGUMENT


def test_arguments_come_with_the_record(qemu: Any) -> None:
    truth = expected(qemu.truth)
    records = {p.pid: p for p in listed(qemu, arguments=True)}
    resident = next(q for q in truth.values() if q["zoo"] == "resident")
    assert [v.decode() for v in records[resident["pid"]].arguments.values] == resident["argv"]
    assert records[2].arguments.error.reason == "NO_USER_MEMORY"
    swapped = next(q for q in truth.values() if q["zoo"] == "swapped")
    assert records[swapped["pid"]].arguments.error.reason == "NOT_PRESENT"


@pytest.mark.parametrize(
    ("state", "exit_state", "letter"),
    [
        (0, 0, "R"),
        (1, 0, "S"),
        (2, 0, "D"),
        (4, 0, "T"),
        (8, 0, "t"),
        (0, 0x10, "X"),
        (0, 0x20, "Z"),
        (0x40, 0, "P"),
        (0x402, 0, "I"),
        (0x1000, 0, "D"),
        (0x8000, 0, "D"),
        (0x80, 0x20, "Z"),
    ],
)
def test_state_letters(state: int, exit_state: int, letter: str) -> None:
    assert state_letter(state, exit_state) == letter


class Fake:
    """A kernel of a few tasks: task at 0x1000 * n, its ``next`` where the test says."""

    def __init__(self, following: dict[int, int]) -> None:
        self.following = following
        self.offsets = {"next": 0, "node": 0, "head": 0}

    def __call__(self, address: int) -> dict[str, int]:
        if address not in self.following:
            raise error(Reason.EXCLUDED, "test", address=address)
        before = next((k for k, v in self.following.items() if v == address), 0)
        return {
            "next": self.following[address],
            "prev": before,
            "pid": address >> 12,
            "tgid": address >> 12,
            "signal": 0,
            "node": 0,
        }


def walker(following: dict[int, int]) -> tasks.Tasks:
    made = object.__new__(tasks.Tasks)
    made.__dict__.update(_links=Fake(following), _kernel=SimpleNamespace(address=lambda name: 0))
    return made


def test_pids_ascend_whatever_the_lists_order() -> None:
    assert list(walker({0: 0x3000, 0x3000: 0x1000, 0x1000: 0}).walk()) == [0x1000, 0x3000]


def test_a_circle_ends_with_an_error_after_what_was_found() -> None:
    walk = walker({0: 0x1000, 0x1000: 0x2000, 0x2000: 0x1000}).walk()
    assert [next(walk), next(walk)] == [0x1000, 0x2000]
    with pytest.raises(KvmError) as caught:
        list(walk)
    assert caught.value.reason is Reason.CORRUPT_DATA


def test_a_broken_link_is_gone_around() -> None:
    walk = walker({0: 0x1000, 0x1000: 0x2000, 0x2000: 0x3000, 0x4000: 0x5000, 0x5000: 0}).walk()
    assert [next(walk) for _ in range(4)] == [0x1000, 0x2000, 0x4000, 0x5000]
    with pytest.raises(KvmError) as caught:
        next(walk)
    assert caught.value.reason is Reason.EXCLUDED


def test_many_tasks_take_linear_time() -> None:
    def seconds(count: int) -> float:
        made = walker({})
        links = [{"next": 0x1000 * ((i + 1) % count), "pid": i} for i in range(count)]
        made._links.__class__ = type("Table", (Fake,), {"__call__": lambda self, a: links[a >> 12]})
        began = time.perf_counter()
        assert len(list(made.walk())) == count - 1
        return time.perf_counter() - began

    assert seconds(100_000) < 2
