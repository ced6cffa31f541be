"""The synthetic image of the benchmark: its processes are read like any others."""

from __future__ import annotations

import os
from pathlib import Path

from bench.many import FIRST_PID, crowded
from images import fixture
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import process_pb2


def test_copies_are_processes(tmp_path: Path) -> None:
    source, target = fixture("kdump/vmcore.elfd"), tmp_path / "crowd"
    crowded(source.path, target, 300)
    request = process_pb2.GetProcsRequest(arguments=True, threads=True)
    with open(target, "rb") as file, open(source.path, "rb") as original:
        found = list(LinuxImage(Files(File(file.fileno(), "crowd"))).processes(request))
        before = list(LinuxImage(Files(File(original.fileno(), "original"))).processes(request))
    copies = [each for each in found if each.pid >= FIRST_PID]
    assert [each for each in found if each.pid < FIRST_PID] == before
    assert [each.pid for each in copies] == list(range(FIRST_PID, FIRST_PID + 300))
    assert [os.fsdecode(each.comm) for each in copies] == [f"copy{n}" for n in range(300)]
    assert all(each.pgid == each.sid == each.tgid == each.pid for each in copies)
    assert len({each.task_address for each in found}) == len(found)
    [arguments] = {tuple(each.arguments.values) for each in copies}
    assert arguments in {tuple(each.arguments.values) for each in before}
    assert target.stat().st_blocks * 512 < 64 << 20
