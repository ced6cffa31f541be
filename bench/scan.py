"""How long it takes to find a kernel that nothing tells of.

    python -m bench.scan [--rounds N]

Makes 1 GiB of raw memory around a shipped dump's: every second page that the dump lacks is full of random bytes, the
others of zeroes. Seconds from opening the file to the first symbol's value, in one process, the best of some rounds;
beside it what reading the file takes alone. Exit status 1 if a bound is missed: 5 s for a GiB that is looked through,
0.5 s where VMCOREINFO tells of kallsyms. Takes 1 GiB of disk. Then, through a daemon that has been idle: seconds from a
connection to a symbol's value and the list of processes, of the first dump of a build and of another one, when its
index is kept.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import libkvm
from bench import measure
from bench.crash import daemon
from bench.dumps import unpacked
from kvmd.images.base import CHUNK, File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.program import open_file
from kvmd.images.registry import open_image
from kvmd.v1 import memory_pb2

SIZE, PAGE = 1 << 30, 4096
GIB, TOLD = 5.0, 0.5
_TEXT = b"OSRELEASE="


def raw(name: str, folder: Path) -> Path:
    """Memory of a shipped dump, its text of VMCOREINFO included."""
    target = folder / "raw"
    noise = random.Random(1).randbytes(CHUNK)
    with unpacked(name).open("rb") as file, target.open("wb") as out:
        for at in range(0, SIZE, 2 * PAGE):
            out.seek(at)
            place = at // 2 % (CHUNK - PAGE)
            out.write(noise[place : place + PAGE])
        out.truncate(SIZE)
        core = File(file.fileno(), name)
        image = LinuxImage(Files(core))
        for run in open_file(core).layout.runs():
            for at in range(run.start, run.stop, CHUNK):
                out.seek(at)
                out.write(image.read(at, min(CHUNK, run.stop - at), memory_pb2.ADDRESS_SPACE_PHYSICAL))
    return target


def wipe(path: Path) -> None:
    """Take VMCOREINFO out of it."""
    with path.open("r+b") as file:
        for at in range(0, SIZE, CHUNK):
            data = os.pread(file.fileno(), CHUNK + len(_TEXT), at)
            place = data.find(_TEXT)
            while place >= 0:
                os.pwrite(file.fileno(), bytes(len(_TEXT)), at + place)
                place = data.find(_TEXT, place + 1)


def seconds(path: Path, rounds: int) -> tuple[float, float, str]:
    """From open to symbol, and of that the processor's; and where the symbol came from."""
    best, source = (float("inf"), float("inf")), ""
    for _ in range(rounds):
        with path.open("rb") as file:
            wall, cpu = time.monotonic(), time.process_time()
            image = open_image(Files(File(file.fileno(), path.name)))
            assert image.symbols(["init_task"])[0].found
            best = min(best, (time.monotonic() - wall, time.process_time() - cpu))
            source = image.info().symbols
    return *best, source


def reading(path: Path) -> float:
    """What reading alone takes."""
    began = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.read(CHUNK):
            pass
    return time.monotonic() - began


def listed(target: str, dump: Path) -> float:
    """Seconds from a connection to a symbol and a list."""
    time.sleep(3)  # a worker stands ready then

    def work() -> None:
        with libkvm.connect(target) as client, client.open(str(dump)) as kernel:
            assert kernel.symbol("schedule")
            assert kernel.processes()

    return measure.seconds(work)


def remembered(name: str, folder: Path, rounds: int) -> tuple[float, float]:
    """The medians for the first dump of a build, and for another."""
    first, other, cache = folder / "first", folder / "other", folder / "cache"
    for path in (first, other):
        shutil.copy(unpacked(name), path)
    times: list[tuple[float, float]] = []
    with daemon(folder) as target:
        for _ in range(rounds):
            for kept in cache.iterdir():
                kept.unlink()
            cold = listed(target, first)
            until = time.monotonic() + 60
            while not list(cache.iterdir()) and time.monotonic() < until:
                time.sleep(0.1)
            times.append((cold, listed(target, other)))
    cold, second = (statistics.median(each) for each in zip(*times, strict=True))
    return cold, second


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="How long it takes to find a kernel that nothing tells of.")
    rounds: int = parser.add_argument("--rounds", type=int, default=3) and parser.parse_args().rounds
    missed = False

    def show(what: str, path: Path, bound: float) -> None:
        nonlocal missed
        wall, cpu, source = seconds(path, rounds)
        missed |= wall > bound
        alone = reading(path)
        took = f"{wall:.2f} s ({cpu:.2f} s of a processor, by {source})"
        line = f"{what}: {took}; bound {bound} s; reading alone {alone:.2f} s"
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    show("told of by VMCOREINFO, 88,042 symbols", unpacked("debian-6.1-panic/vmcore.kdump"), TOLD)
    show("kallsyms scanned for, 29,290 symbols", unpacked("linux-5.10/vmcore.kdump"), TOLD)
    with tempfile.TemporaryDirectory() as folder:
        for name, what in (("linux-5.10/vmcore.kdump", "5.10"), ("qemu/vmcore.kdump", "6.1")):
            path = raw(name, Path(folder))
            show(f"1 GiB raw, {what}, VMCOREINFO's text in memory", path, GIB)
            wipe(path)
            show(f"1 GiB raw, {what}, nothing", path, GIB)
    for name, what in (("linux-5.10", "kallsyms scanned for"), ("x86-no-data-symbols", "BTF and data scanned for")):
        with tempfile.TemporaryDirectory() as folder:
            cold, second = remembered(f"{name}/vmcore.kdump", Path(folder), rounds)
        sys.stdout.write(f"{what}, through a daemon: {cold:.2f} s, the next dump of the build {second:.2f} s\n")
        sys.stdout.flush()
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
