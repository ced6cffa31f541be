"""From kvm_open to the process list with arguments, against crash(8) with DWARF.

Runs only where crash and the DWARF vmlinux of Debian's 6.1.0-56-cloud-amd64 (package linux-image-...-dbg) are:

    python -m bench --vmlinux FILE

The dump that is shipped is without the code of the kernel, where crash wants to look: it is put back from the vmlinux.
"""

from __future__ import annotations

import shutil
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import libkvm
from bench.dumps import unpacked, zstd
from bench.measure import seconds
from bench.open_to_ps import is_users
from bench.rows import Row
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage

SOURCE = "debian-6.1-panic/vmcore.kdump"
_KERNEL_MAP = 0xFFFFFFFF80000000  # __START_KERNEL_map: arch/x86/include/asm/page_64_types.h
PAGE = 4096


def missing(vmlinux: str | None) -> str | None:
    """What keeps the rows from being measured."""
    if shutil.which("crash") is None:
        return "crash is not installed"
    if vmlinux is None or not Path(vmlinux).exists():
        return "no DWARF vmlinux of 6.1.0-56-cloud-amd64 is named (--vmlinux)"
    return None


def code(vmlinux: str, image: LinuxImage) -> dict[int, bytes]:
    """The kernel's pages that the dump doesn't hold, by number, as they were linked."""
    info, trouble = image.kernel.info, image.kernel.dump.layout.trouble
    moved = (info.kaslr_offset or 0) - _KERNEL_MAP + (info.number("phys_base") or 0)
    pages: dict[int, bytes] = {}
    with open(vmlinux, "rb") as file:
        phoff, size, count = struct.unpack_from("<32xQ14xHH", file.read(64))
        file.seek(phoff)
        table = file.read(size * count)
        for n in range(count):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", table, n * size)
            for at in range(0, length, PAGE) if kind == 1 and address >= _KERNEL_MAP else ():
                if trouble(address + at + moved) is not None:
                    file.seek(offset + at)
                    pages[address + at + moved >> 12] = file.read(min(PAGE, length - at)).ljust(PAGE, b"\0")
    return pages


def whole(vmlinux: str, target: Path) -> None:
    """Write the dump as ``makedumpfile -z -d 31`` would have made it."""
    source = unpacked(SOURCE)
    with open(source, "rb") as file:
        more = code(vmlinux, LinuxImage(Files(File(file.fileno(), str(source)))))
        users = is_users(source)
        zstd(source, target, keep=lambda pfn: not users(pfn), more=more)


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """A kvmd that forgets an image as soon as it is closed, and keeps what it has found out about its kernel."""
    config = folder / "kvmd.toml"
    config.write_text(f'[cache]\ndirectory = "{folder}/cache"\n[limits]\nworker_linger = 0\n')
    target = f"unix:{folder}/kvmd.sock"
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "--listen", target, "--dump-dir", str(folder)]
    with (folder / "log").open("w+") as log, subprocess.Popen(command, stderr=log) as process:
        while "ready" not in (folder / "log").read_text():
            time.sleep(0.05)
        try:
            yield target
        finally:
            process.terminate()


def open_to_ps(target: str, dump: Path) -> float:
    """Seconds from a connection to the list with arguments; the service has been idle, and a worker stands ready."""
    time.sleep(3)

    def work() -> None:
        with libkvm.connect(target) as client, client.open(str(dump)) as kernel:
            assert len(kernel.processes(arguments=True)) > 50

    return seconds(work)


def crash(vmlinux: str, dump: Path, commands: Path) -> float:
    """Seconds of one crash that shows its process list. (8.0.2 finds 4 of this dump's 74 processes.)"""
    command = ["crash", "-s", "-i", str(commands), vmlinux, str(dump)]
    shown: list[str] = []

    def work() -> None:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        shown.append(done.stdout)

    took = seconds(work)
    assert "COMM" in shown[0], shown[0]
    return took


def rows(vmlinux: str, folder: Path, rounds: int) -> Iterator[Row]:
    """Measure the three in turn: no index of the kernel is there, crash, another dump of the kernel that was seen."""
    folder.mkdir()
    first, other, commands = folder / "first", folder / "other", folder / "commands"
    whole(vmlinux, first)
    shutil.copy(first, other)
    commands.write_text("ps\nquit\n")
    times: list[tuple[float, float, float]] = []
    with daemon(folder) as target:
        for _ in range(rounds + 1):
            for kept in (folder / "cache").iterdir():
                kept.unlink()
            cold = open_to_ps(target, first)
            theirs = crash(vmlinux, first, commands)
            while not list((folder / "cache").iterdir()):
                time.sleep(0.1)
            times.append((cold, open_to_ps(target, other), theirs))
    cold, second, theirs = (statistics.median(each) for each in zip(*times[1:], strict=True))
    what = "kvm_open to the process list with arguments"
    yield Row(f"{what}, cold", "crash with DWARF to ps", cold, theirs, 1 / 20, unit="in all")
    yield Row(f"{what}, kernel seen before", "crash with DWARF to ps", second, theirs, 1 / 60, unit="in all")
