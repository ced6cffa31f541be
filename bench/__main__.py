"""All rows of the table of figures, measured in one run and printed as one report.

    python -m bench [--rounds N] [--only WORD]

As root, the client is another user than the daemon: uid 65534. Each row takes both sides in turn; what counts is the
median. Exit status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import libkvm.transports.grpc  # noqa: F401 - before another user's rights may be too few to
from bench.bulk import again, cold, looked_through, stream, with_memory
from bench.crash import missing, rows
from bench.dumps import unpacked, zstd
from bench.loads import crowd, descriptors, idlers, opening
from bench.many import crowded, listing
from bench.measure import machine
from bench.mtls_stream import own
from bench.rows import Row, Subject, uncached, vector, warm
from bench.walk import walk

NOBODY = 65534
POLICY = f"""
[limits]
worker_linger = 2

[[policy]]
subjects = ["uid:{NOBODY}"]
images = ["dump:*"]
verbs = ["*"]
"""


@contextmanager
def daemon(folder: Path) -> Iterator[tuple[str, int]]:
    """A kvmd that serves a folder to everybody who measures."""
    config, log = folder / "kvmd.toml", folder / "log"
    config.write_text(POLICY)
    target = f"unix:{folder}/kvmd.sock"
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "--listen", target, "--dump-dir", str(folder)]
    with log.open("w+") as said, subprocess.Popen(command, stderr=said) as process:
        while "ready" not in log.read_text():
            time.sleep(0.05)
        try:
            yield target, process.pid
        finally:
            process.terminate()


def dumps(folder: Path) -> dict[str, Path]:
    """The dumps that are read."""
    raw = folder / "kdump-raw"
    os.link(unpacked("debian-6.1-panic/vmcore.kdump"), raw)
    zstd(raw, folder / "kdump-zstd", keep=lambda _: True)
    os.link(unpacked("kdump/vmcore.elfd"), folder / "elf-panic")
    os.link(unpacked("qemu/vmcore.elfd"), folder / "elf-qemu")
    with_memory(unpacked("kdump/vmcore.elfd"), folder / "elf-large")
    for name, size in (("elf-512M", 512 << 20), ("elf-64G", 64 << 30)):
        with_memory(unpacked("kdump/vmcore.elfd"), folder / name, size, sparse=True)
    for name, count in (("elf-1k", 1000), ("elf-100k", 100_000)):
        crowded(unpacked("kdump/vmcore.elfd"), folder / name, count)
    if (makedumpfile := shutil.which("makedumpfile")) is not None:
        for codec, flag in (("zlib", "-c"), ("lzo", "-l")):
            command = [makedumpfile, flag, "-d", "0", "--message-level", "0", folder / "elf-panic", folder / codec]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            (folder / codec).chmod(0o644)
            (folder / codec).rename(folder / f"kdump-{codec}")
    return {each.name: each for each in folder.iterdir()}


def table(target: str, pid: int, files: dict[str, Path], rounds: int) -> Iterator[Callable[[], Row]]:
    """The rows, each to be measured when it is called."""

    def on(name: str, measure: Callable[..., Row], *more: float | str) -> Callable[[], Row]:
        def row() -> Row:
            subject = Subject(target, files[name])
            try:
                return measure(subject, *more, rounds)
            finally:
                subject.close()

        row.__name__ = f"{measure.__name__} {name}"
        return row

    for name, bound in (("kdump-raw", 3.0), ("kdump-zstd", 3.0), ("elf-qemu", 0.5), ("elf-panic", 0.5)):
        yield on(name, warm, bound, "read")
    for name in ("elf-qemu", "elf-panic"):
        yield on(name, warm, 0.5, "reader")
    yield on("kdump-zstd", uncached)
    yield on("kdump-zstd", vector)
    yield on("elf-qemu", vector)
    for codec in ("zstd", "zlib", "lzo"):
        if f"kdump-{codec}" in files:
            yield on(f"kdump-{codec}", cold)
            yield on(f"kdump-{codec}", again)
    yield on("elf-large", stream)
    yield on("elf-large", looked_through)
    yield on("kdump-raw", walk)
    yield on("kdump-zstd", walk)
    yield on("elf-100k", listing, str(files["elf-1k"]))
    yield on("elf-64G", opening, str(files["elf-512M"]))
    yield on("kdump-zstd", descriptors, pid)
    yield on("kdump-zstd", idlers, pid)
    yield on("elf-large", crowd)


def report(rows: Iterator[Callable[[], Row]], only: str) -> int:
    """Print the rows; answer how many bounds are missed."""
    return sum(not _show(measure()) for measure in rows if only in measure.__name__)


def _show(row: Row) -> bool:
    sign = "at least" if row.least else "at most"
    show = _size if row.unit == "bytes" else _time
    times = f"{show(row.ours)} {row.unit} | {row.against} | {show(row.theirs)}"
    verdict = "" if row.good else "missed"
    print(f"| {row.what} | {times} | {row.ratio:.3g} | {sign} {row.bound:.3g} | {verdict} |", flush=True)
    return row.good


def over_tls(dump: Path, folder: Path, rounds: int, only: str) -> int:
    """Print the row of a daemon that listens for other hosts; answer how many bounds are missed."""
    return int(not _show(own(folder / "mtls", dump, rounds))) if only in "own mtls stream" else 0


def against_crash(vmlinux: str | None, folder: Path, rounds: int, only: str) -> int:
    """Print the rows that have a daemon of their own; answer how many bounds are missed."""
    if only not in "open_to_ps crash":
        return 0
    if (why := missing(vmlinux)) is not None or vmlinux is None:
        print(f"| kvm_open to the process list with arguments | not measured | crash with DWARF: {why} | | | | |")
        return 0
    return sum(not _show(row) for row in rows(vmlinux, folder / "crash", rounds))


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.2f} µs" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _size(count: float) -> str:
    return f"{count / 1024:.1f} Ki"


def as_nobody(work: Callable[[], int]) -> int:
    """Do it in a process of another user's, if this is root's."""
    sys.stdout.flush()
    if (pid := os.fork()) == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        status = 2
        try:
            status = min(work(), 1)
        except BaseException:  # noqa: BLE001 - told here, since the process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="rows whose name holds this, such as 'warm elf'")
    parser.add_argument("--vmlinux", help="with DWARF, of the Debian dump's kernel: for the rows against crash")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-", dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        files = dumps(folder)
        with daemon(folder) as (target, pid):
            print(f"{machine()}\nload {os.getloadavg()[0]:.1f} before\n")
            print("| what | ours | against | theirs | ratio | bound | |\n|---|---|---|---|---|---|---|")
            status = as_nobody(lambda: report(table(target, pid, files, options.rounds), options.only))
        missed = over_tls(files["elf-large"], folder, options.rounds, options.only)
        missed += against_crash(options.vmlinux, folder, options.rounds, options.only)
        return status or min(missed, 1)


if __name__ == "__main__":
    sys.exit(main())
