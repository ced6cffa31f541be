"""Opening a dump that must be looked through: the client hears how far that has come, on every face."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import libkvm
import libkvm.aio
from daemon import Daemon, running_daemon
from images import fixture
from kernel_truth import wiped
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.program import open_file
from kvmd.v1 import memory_pb2

SIZE = 1 << 30
NAME = "linux-5.15/vmcore.kdump"
PHYSICAL = memory_pb2.ADDRESS_SPACE_PHYSICAL


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A daemon, and 1 GiB of raw memory, most of it holes of the file, of a kernel without VMCOREINFO."""
    folder = tmp_path_factory.mktemp("dumps")
    (folder / "kdump").write_bytes(wiped(NAME))
    with (folder / "kdump").open("rb") as file, (folder / "raw").open("wb") as out:
        core = File(file.fileno(), "kdump")
        image = LinuxImage(Files(core))
        for run in open_file(core).layout.runs():
            for at in range(run.start, run.stop, 1 << 20):
                out.seek(at)
                out.write(image.read(at, min(1 << 20, run.stop - at), PHYSICAL))
        out.truncate(SIZE)
    with running_daemon([folder]) as daemon:
        yield daemon, folder / "raw"


def ascends(heard: list[tuple[int, int]]) -> bool:
    return len(heard) > 1 and heard == sorted(set(heard)) and {of for _, of in heard} == {SIZE}


def test_a_client_hears_of_it(served: tuple[Daemon, Path]) -> None:
    daemon, path = served
    heard: list[tuple[int, int]] = []
    with libkvm.connect(daemon.target) as client:
        with client.open(path, progress=lambda done, of: heard.append((done, of))) as kernel:
            assert kernel.info.release == fixture(NAME).truth["release"]
            assert kernel.info.format == "raw"
            before = len(heard)
            with client.open(path, progress=lambda done, of: heard.append((done, of))):
                assert len(heard) == before  # it is open
        assert ascends(heard)
        with pytest.raises(libkvm.SourceNotFoundError):
            client.open("none", progress=print)


async def test_the_twin_hears_of_it(served: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, path = served
    os.utime(path)  # another image
    heard: list[tuple[int, int]] = []
    async with (
        libkvm.aio.connect(daemon.target) as client,
        client.open(path, progress=lambda done, of: heard.append((done, of))) as kernel,
    ):
        assert (await kernel.symbol("init_task")).source == "scan"
    assert ascends(heard)


def test_kvmctl_shows_it_on_a_terminal(served: tuple[Daemon, Path]) -> None:
    daemon, path = served
    os.utime(path)
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "libkvm", "--target", daemon.target, "nlist", "-M", str(path), "init_task"]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=theirs, check=False, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert (done.returncode, b"init_task" in done.stdout) == (0, True)
    assert "% of 1024 MiB" in shown
    assert shown.endswith("\r\x1b[K")
    quiet = subprocess.run(words, capture_output=True, check=False, timeout=60)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
