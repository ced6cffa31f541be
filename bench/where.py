"""Who takes how long in the rows about much memory: processor time of each process, and its waits for a processor.

    python -m bench.where [--rounds N]

A line a row, in microseconds for a MiB, medians: time by the clock; then for each process processor time, and time
for which it could have run and had no processor (/proc/PID/task/TID/schedstat). Last, a hit in the page cache, in
nanoseconds, and what Python takes for its parts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path

import libkvm
from bench import far
from bench.__main__ import daemon, dumps
from bench.bulk import HIGH, LARGE, STREAM, runs
from bench.loads import CLIENTS, streaming
from bench.measure import machine
from bench.mtls_stream import client, serving
from bench.rows import MIB, PAGE, Subject, each, program, scattered

Times = dict[str, tuple[float, float]]


def spent(pid: int) -> tuple[float, float]:
    """Seconds that a process has run, and that it has waited for a processor, over all of its threads."""
    ran = waited = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            words = task.read_text("ascii").split()
            ran, waited = ran + int(words[0]), waited + int(words[1])
    return ran / 1e9, waited / 1e9


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]


def processes(of: int) -> dict[str, list[int]]:
    """The daemon, its workers, and their helpers."""
    workers = children(of)
    return {"client": [os.getpid()], "daemon": [of], "worker": workers, "helper": list(chain(*map(children, workers)))}


def measured(work: Callable[[], object], who: dict[str, list[int]], size: float) -> tuple[float, Times]:
    """Microseconds for each of so many MiB: by the clock, and of each kind of process."""
    before = {name: [spent(pid) for pid in pids] for name, pids in who.items()}
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    times: Times = {}
    for name, pids in who.items():
        pairs = [(old, new) for old, new in zip(before[name], map(spent, pids), strict=True) if new >= old]
        ran, waited = (sum(new[n] - old[n] for old, new in pairs) / size * 1e6 for n in (0, 1))
        times[name] = ran, waited
    return took / size * 1e6, times


def every(read: Callable[[int, int], object], ranges: list[tuple[int, int]]) -> None:
    for address, length in ranges:
        read(address, length)


def show(what: str, found: list[tuple[float, Times]]) -> None:
    words = [f"{what}: {statistics.median(took for took, _ in found):.0f}"]
    for name in found[0][1]:
        ran, waited = (statistics.median(times[name][n] for _, times in found) for n in (0, 1))
        if ran >= 1:
            words.append(f"{name} {ran:.0f} + {waited:.0f}")
    print("; ".join(words), flush=True)


def cold(target: str, pid: int, path: Path, rounds: int) -> None:
    """As the row of the same name."""
    subject = Subject(target, path)
    ranges = runs(subject.pages())
    subject.close()
    size = sum(length for _, length in ranges) / MIB
    ours, theirs = [], []
    for _ in range(rounds):
        time.sleep(2.5)  # as there
        with libkvm.connect(target) as connection, connection.open(str(path)) as kernel:
            kernel.read(ranges[0][0], 8)
            ours.append(measured(partial(every, kernel.read, ranges), processes(pid), size))
        prog = program(path)
        prog.read(ranges[0][0], 8)
        theirs.append(measured(partial(every, prog.read, ranges), {"drgn": [os.getpid()]}, size))
    show(f"1 MiB reads, cold, {path.name}", ours)
    show("    the same by drgn", theirs)


def stream(target: str, pid: int, path: Path, rounds: int) -> None:
    """As the row of the same name."""

    ranges, size = LARGE, STREAM / MIB
    with libkvm.connect(target) as connection, connection.open(str(path)) as kernel:
        prog = program(path)
        read = partial(every, lambda *each: kernel.read(*each, physical=True), ranges)
        same = partial(every, lambda *each: prog.read(*each, True), ranges)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(measured(read, processes(pid), size))
            theirs.append(measured(same, {"drgn": [os.getpid()]}, size))
    show("1 MiB reads of an ELF dump", ours)
    show("    the same by drgn", theirs)


def crowd(target: str, pid: int, path: Path) -> None:
    """Small reads beside many streams, in microseconds for each read."""
    count = 3000
    with libkvm.connect(target) as connection, connection.open(str(path)) as kernel:
        read = partial(every, partial(kernel.read, physical=True), [(HIGH + n * PAGE, 8) for n in range(count)])
        show("8-byte reads, each", [measured(read, processes(pid), count)])
        with streaming(target, str(path)):
            show(f"    beside {CLIENTS} streams", [measured(read, processes(pid), count)])


def over_tls(folder: Path, dump: Path, rounds: int) -> None:
    """As the row of ReadStream over mTLS."""
    folder.mkdir()
    os.link(dump, folder / "vmcore")
    with started() as new, far.daemon(folder) as (port, files), serving(f"{folder}/pki") as (bare, _):
        kvmd, server = new()
        theirs, size = client(folder / "pki", bare), STREAM / MIB
        with libkvm.connect(f"dns:///localhost:{port}", **files) as remote, remote.open(f"{folder}/vmcore") as kernel:
            ours, others = [], []
            for _ in range(rounds):
                pieces = kernel.stream(HIGH, STREAM, physical=True)
                ours.append(measured(partial(deque, pieces, maxlen=0), processes(kvmd), size))
                others.append(measured(theirs, {"client": [os.getpid()], "server": [server]}, size))
    show("ReadStream over mTLS", ours)
    show("    a bare stream", others)


@contextmanager
def started() -> Iterator[Callable[[], list[int]]]:
    """Tells which processes this one has started since, in their order."""
    before = set(children(os.getpid()))
    yield lambda: [pid for pid in children(os.getpid()) if pid not in before]


def hit(target: str, path: Path, rounds: int) -> None:
    """A hit in the page cache, and what Python takes for the least that any such function has to do."""
    subject = Subject(target, path)
    pages = subject.pages()
    addresses = scattered(pages, 50_000)
    memory = b"".join(subject.kernel.read(address, PAGE) for address in pages)
    reader = subject.kernel.reader()
    reader(pages[0], 8)
    places = {address >> 12: n * PAGE for n, address in enumerate(pages)}

    def nothing(_address: int, _length: int, _offset: int = 0, _physical: bool = False) -> bytes:
        return b""

    def least(address: int, length: int, _offset: int = 0, _physical: bool = False) -> bytes:
        at = places[address >> 12] + (address & PAGE - 1)
        return memory[at : at + length]

    ways = {"drgn": subject.drgn.read, "Kernel.read": subject.kernel.read, "Kernel.reader()": reader}
    ways |= {"a call alone": nothing, "a call, a look-up and a slice": least}
    found = {name: [each(read, addresses) for _ in range(rounds)] for name, read in ways.items()}
    print("8 bytes at random: " + "; ".join(f"{name} {statistics.median(t) * 1e9:.0f}" for name, t in found.items()))
    subject.close()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        files = dumps(folder)
        print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
        with daemon(folder) as (target, pid):
            for codec in ("zstd", "zlib", "lzo"):
                if f"kdump-{codec}" in files:
                    cold(target, pid, files[f"kdump-{codec}"], rounds)
            stream(target, pid, files["elf-large"], rounds)
            hit(target, files["elf-panic"], rounds)
            crowd(target, pid, files["elf-large"])
        over_tls(folder / "mtls", files["elf-large"], rounds)


if __name__ == "__main__":
    main()
