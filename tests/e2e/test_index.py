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
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.index import Index, inputs, make

BUILD = "debian-6.1-panic/vmcore.kdump"
COMM = b"kthreadd" + bytes(8)  # as task_struct has it, and nothing else


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


def swapped(dump: Path) -> tuple[bytes, str, str]:
    """The dump with the addresses of two symbols exchanged in its symbol table."""
    with dump.open("rb") as file:
        kernel = LinuxImage(Files(File(file.fileno(), str(dump)))).kernel
        raw = kernel._raw_kallsyms()
        assert raw is not None
        places = Index(memoryview(make(memoryview(inputs(raw, kernel._btf_in_memory()))))).symbols(
            raw, kernel.address("_stext")
        )
        assert places is not None
        names = ["schedule", "init_task"]
        one, other = (next(iter(places.numbers(name.encode())))[0] for name in names)
    data, words = bytearray(dump.read_bytes()), raw.offsets
    for number, by in ((one, other), (other, one)):
        around = words[4 * number - 40 : 4 * number + 40]
        assert data.count(around) == 1
        at = data.find(around) + 40
        data[at : at + 4] = words[4 * by : 4 * by + 4]
    return bytes(data), *names


def test_a_dump_with_another_symbol_table_misleads_nobody(tmp_path: Path, dumps: Path) -> None:
    forged, *names = swapped(dumps / "one")
    (dumps / "liar").write_bytes(forged)

    def addresses(path: Path) -> list[int]:
        with libkvm.connect(daemon.target) as client, client.open(str(path)) as kernel:
            assert kernel.info.release
            return [kernel.symbol(name).value for name in names]

    with running_daemon([dumps]) as daemon:
        truth, lied = addresses(dumps / "one"), addresses(dumps / "liar")
        assert lied == truth[::-1]
    with running_daemon([dumps], config(tmp_path)) as daemon:
        assert addresses(dumps / "liar") == lied
        index(tmp_path)
        assert addresses(dumps / "one") == truth
        assert addresses(dumps / "other") == truth


def test_a_dump_that_differs_elsewhere_alone_makes_the_same_index(tmp_path: Path, dumps: Path) -> None:
    """Same build id, symbols and types; everything that an index doesn't hold is the dump's own."""
    liar, data = dumps / "liar", (dumps / "one").read_bytes()
    at = data.find(COMM)
    assert at > 0
    liar.write_bytes(data.replace(COMM, COMM.replace(b"e", b"3")))
    made = []
    for first in (liar, dumps / "one"):
        with running_daemon([dumps], config(tmp_path)) as daemon:
            listed(daemon, first)
            made.append(index(tmp_path).read_bytes())
            assert {comm for _, comm, _ in listed(daemon, liar)} >= {"kthr3add"}
            assert {comm for _, comm, _ in listed(daemon, dumps / "other")} >= {"kthreadd"}
        index(tmp_path).unlink()
    assert made[0] == made[1]


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


def nudged(dump: Path) -> bytes:
    """The dump with ``schedule`` a byte later in a symbol table that is to be scanned for."""
    with dump.open("rb") as file:
        kernel = LinuxImage(Files(File(file.fileno(), str(dump)))).kernel
        stext = kernel.address("_stext")
        tables = kernel._by_scan.tables
        assert tables is not None
        known = Index(memoryview(make(memoryview(kernel.index_inputs())))).scanned(kernel.memory.kernel, stext)
        assert known is not None
        raw, number = known[1].raw, next(known[1].numbers(b"schedule"))[0]
    data, around = bytearray(dump.read_bytes()), raw.offsets[4 * number - 40 : 4 * number + 40]
    assert data.count(around) == 1
    at = data.find(around) + 40
    word = int.from_bytes(around[40:44], "little", signed=True)
    data[at : at + 4] = (word + (1 if word >= 0 else -1)).to_bytes(4, "little", signed=True)
    return bytes(data)


def test_tables_that_were_scanned_for_are_remembered_and_mislead_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for name in ("one", "other"):
        shutil.copy(fixture("linux-5.10/vmcore.kdump").path, folder / name)
    (folder / "liar").write_bytes(nudged(folder / "one"))

    def schedule(name: str) -> int:
        with libkvm.connect(daemon.target) as client, client.open(str(folder / name)) as kernel:
            assert kernel.info.symbols == "scan"
            return kernel.symbol("schedule").value

    with running_daemon([folder], config(tmp_path)) as daemon:
        lied = schedule("liar")
        first = index(tmp_path)
        whole = first.read_bytes()
        assert schedule("one") == lied - 1
        until = time.monotonic() + 20
        while index(tmp_path).read_bytes() == whole and time.monotonic() < until:
            time.sleep(0.05)
        made, inode = index(tmp_path).read_bytes(), index(tmp_path).stat().st_ino
        assert made != whole
        assert schedule("other") == lied - 1
        time.sleep(1)
        assert index(tmp_path).stat().st_ino == inode  # nothing was missed in it
    with running_daemon([folder], config(tmp_path)) as daemon:
        assert schedule("liar") == lied
        assert schedule("other") == lied - 1
    assert not any(b"index" in line for line in daemon.log)


def test_types_that_were_scanned_for_are_remembered(tmp_path: Path) -> None:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for name in ("one", "other"):
        shutil.copy(fixture("x86-no-data-symbols/vmcore.kdump").path, folder / name)
    with running_daemon([folder], config(tmp_path)) as daemon:
        truth = listed(daemon, folder / "one")
        inode = index(tmp_path).stat().st_ino
        assert listed(daemon, folder / "other") == truth
        time.sleep(1)
    assert len(truth) > 10
    assert index(tmp_path).stat().st_ino == inode
