"""BSD dumps through a daemon: handles of one image that look at different dumps in it, and what the record says."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

import bsd
import bsd_minidump
import libkvm
from bsd import PAGE, TEXT_BASE, pattern
from daemon import running_daemon


def test_each_offset_has_its_own_image_and_record(tmp_path: Path) -> None:
    dumps, audit = tmp_path / "dumps", tmp_path / "audit"
    dumps.mkdir()
    device, later = bsd.k1().device(), bsd.k4().device()
    (dumps / "device").write_bytes(device + later)
    with running_daemon([dumps], f'[audit]\nfile = "{audit}"\n') as daemon, libkvm.connect(daemon.target) as client:
        with client.open("device") as plain, client.open("device", dump_offset=0) as first:
            second = client.open("device", dump_offset=len(device))
            again = client.open("device", dump_offset=0)
            with second, again:
                assert first.read(TEXT_BASE, PAGE) == again.read(TEXT_BASE, PAGE) == pattern(5)
                assert [kernel.dump_header().device_bytes for kernel in (first, second, again)] == [512, 1024, 512]
                with pytest.raises(libkvm.FormatError, match="dump header"):
                    plain.read(TEXT_BASE, 8)
        with pytest.raises(libkvm.FormatError, match="invalid magic in cpu_hdr"):
            client.open("device", dump_offset=8)
        with pytest.raises(libkvm.RequestError):
            client.open("device", dump_offset=-1)
    opens = [record for record in map(json.loads, audit.read_text().splitlines()) if record["event"] == "open"]
    assert [record.get("dump_offset") for record in opens] == [None, 0, len(device), 0, 8]
    workers = [record.get("worker") for record in opens]
    assert workers[1] == workers[3]
    assert len(set(workers[:4])) == 3


def test_a_hostile_dump_costs_its_worker_no_more_than_it_may(tmp_path: Path) -> None:
    """A header that asks for as much as is believed, in a sparse file that has it."""
    path = tmp_path / "core"
    head = bytearray(bsd_minidump.minidump(3).file()[:72])
    struct.pack_into("<II", head, 32, 1 << 30, 256 << 20)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(20 << 30)
    with running_daemon([tmp_path]) as daemon, libkvm.connect(daemon.target) as client, client.open(path) as kernel:
        for address in (bsd_minidump.M_BASE, 0xFFFFF80000000000):
            with pytest.raises(libkvm.FaultError):
                kernel.read(address, 8)
        assert list(kernel.pages()) == []
