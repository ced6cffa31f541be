"""Where a pid's task is: found in one walk over a dump, however many are asked for, and however damaged the list is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from drgn import offsetof

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.tasks import Tasks
from kvmd.v1 import memory_pb2, process_pb2
from kvmd.worker.methods import read_v
from overlay import Overlay


@pytest.fixture(scope="module")
def image() -> Iterator[LinuxImage]:
    with open(fixture("qemu/vmcore.kdump").path, "rb") as file:
        yield LinuxImage(Files(File(os.dup(file.fileno()), "qemu")))


@pytest.fixture
def kernel(image: LinuxImage) -> Any:
    return Overlay(image.kernel)


def listed(image: LinuxImage) -> dict[int, int]:
    request = process_pb2.GetProcsRequest(threads=True)
    return {each.pid: each.task_address for each in image.processes(request)}


def test_all_are_found_in_one_walk(image: LinuxImage, kernel: Any) -> None:
    tasks, truth = Tasks(kernel), listed(image)
    assert tasks.find(max(truth)) == truth[max(truth)]
    with pytest.raises(KvmError) as caught:
        tasks.find(4_000_000)
    assert caught.value.reason is Reason.NO_SUCH_PROCESS
    before = kernel.reads
    assert {pid: tasks.find(pid) for pid in truth} == truth
    for pid in (0, -1, 4_000_000):
        with pytest.raises(KvmError, match="no process"):
            tasks.find(pid)
    assert kernel.reads == before


def test_what_comes_before_a_fault_is_found_and_the_fault_is_each_callers_own(image: LinuxImage, kernel: Any) -> None:
    links = offsetof(kernel.prog.type("struct task_struct"), "tasks")
    leaders = list(Tasks(kernel).walk())
    broken = leaders[len(leaders) // 2]
    kernel.put(broken + links, 0x10)
    tasks, truth = Tasks(kernel), listed(image)
    assert tasks.find(1) == truth[1]
    failures = []
    for _ in range(2):
        with pytest.raises(KvmError) as caught:
            tasks.find(4_000_000)
        assert caught.value.reason is Reason.NOT_MAPPED
        failures.append(caught.value)
    assert failures[0] is not failures[1]
    assert failures[0].metadata is not failures[1].metadata
    for leader in (1, max(truth)):  # which the list leads to from its other end
        assert tasks.find(leader) == truth[leader]


def test_a_request_for_many_that_are_not_there_is_one_walk(image: LinuxImage) -> None:
    """16,384 walks took 24 seconds of this dump's worker, and its end where there are more processes."""
    space = memory_pb2.ADDRESS_SPACE_USER
    wanted = [memory_pb2.Range(address=1, length=8, space=space, pid=1_000_000 + n) for n in range(16384)]
    began = time.process_time()
    answer = read_v(image, memory_pb2.ReadVRequest(ranges=wanted).SerializeToString())
    raw = answer if isinstance(answer, bytes) else b"".join(answer)
    assert time.process_time() - began < 5
    whole = raw if isinstance(raw, bytes) else b"".join(raw)  # in pieces if it takes long
    results = memory_pb2.ReadVResponse.FromString(whole).results
    assert {each.error.reason for each in results} == {"NO_SUCH_PROCESS"}
