"""The index of a kernel build, through a daemon: made once, used by other dumps after a restart, by nobody's word."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

import libkvm
from daemon import Daemon, running_daemon
from images import fixture

BUILD = "debian-6.1-panic/vmcore.kdump"


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    folder = tmp_path / "dumps"
    folder.mkdir()
    shutil.copy(fixture(BUILD).path, folder / "one")
    shutil.copy(fixture(BUILD).path, folder / "other")
    return folder


def config(tmp_path: Path) -> str:
    return f'[cache]\ndirectory = "{tmp_path}/cache"\n[limits]\nworker_linger = 0\n'


def listed(daemon: Daemon, path: Path) -> list[tuple[int, str, tuple[str, ...]]]:
    with libkvm.connect(daemon.target) as client, client.open(str(path)) as kernel:
        return [(p.pid, p.comm, tuple(p.args)) for p in kernel.processes(arguments=True)]


def index(tmp_path: Path, seconds: float = 20) -> Path:
    """The one index, as soon as it is there."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = [each for each in (tmp_path / "cache").iterdir() if not each.name.startswith(".")]
        if found:
            return found[0]
        time.sleep(0.05)
    pytest.fail("no index was made")


def test_is_made_once_and_used_for_another_dump_after_a_restart(tmp_path: Path, dumps: Path) -> None:
    with running_daemon([dumps], config(tmp_path)) as daemon:
        truth = listed(daemon, dumps / "one")
        made = index(tmp_path)
    assert len(truth) > 50
    assert made.stat().st_mode & 0o777 == 0o600
    os.utime(made, (1000, 1000))
    inode = made.stat().st_ino
    with running_daemon([dumps], config(tmp_path)) as daemon:
        assert listed(daemon, dumps / "other") == truth
        assert listed(daemon, dumps / "one") == truth
        time.sleep(1)
    assert made.stat().st_mtime > 1000  # it was used,
    assert made.stat().st_ino == inode  # and nothing was missed in it
    assert not any(b"index" in line for line in daemon.log)


def test_a_dump_that_lies_about_its_build_misleads_nobody(tmp_path: Path, dumps: Path) -> None:
    """Types, and so offsets of members, are other ones in the liar: it claims the same build."""
    data = bytearray((dumps / "one").read_bytes())
    count = data.count(b"\0thread_pid\0")
    assert count
    liar = dumps / "liar"
    liar.write_bytes(data.replace(b"\0thread_pid\0", b"\0thread_dip\0"))
    with running_daemon([dumps], config(tmp_path)) as daemon:
        lied = listed(daemon, liar)
        first = index(tmp_path).read_bytes()
        truth = listed(daemon, dumps / "one")
        until = time.monotonic() + 20
        while index(tmp_path).read_bytes() == first and time.monotonic() < until:
            time.sleep(0.05)
        assert index(tmp_path).read_bytes() != first
        assert listed(daemon, dumps / "other") == truth
        assert listed(daemon, liar) == lied
    with running_daemon([dumps]) as daemon:
        assert listed(daemon, dumps / "one") == truth
        assert listed(daemon, liar) == lied


def test_damage_and_a_missing_directory_cost_time_only(tmp_path: Path, dumps: Path) -> None:
    with running_daemon([dumps], config(tmp_path)) as daemon:
        truth = listed(daemon, dumps / "one")
        made = index(tmp_path)
    made.write_bytes(made.read_bytes()[:-1] + b"x")
    with running_daemon([dumps], config(tmp_path)) as daemon:
        assert listed(daemon, dumps / "one") == truth
    assert any(b"damaged" in line for line in daemon.log)
    os.chmod(tmp_path / "cache", 0o755)
    with running_daemon([dumps], config(tmp_path)) as daemon:
        assert listed(daemon, dumps / "one") == truth
    assert any(b"nothing is kept" in line for line in daemon.log)
