"""From kvm_open to the complete process list of a zstd ``-d 31`` dump: through kvmd, and in-process with drgn.

    python -m bench.open_to_ps [--rounds N] [--most RATIO]

Each round opens the dump anew: the daemon's worker of the round before is gone (``worker_linger = 0``), and the
next one stands ready, as in a service that has been idle for two seconds; a second line shows it without that.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn import offsetof

import libkvm
from bench.dumps import unpacked, zstd
from bench.measure import in_turn, machine, seconds
from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.registry import open_image
from kvmd.v1 import process_pb2

PAGE_MAPPING_ANON = 1  # include/linux/page-flags.h: the lowest bit of page->mapping


def is_users(source: Path) -> Callable[[int], bool]:
    """Tells whether the page of a number belongs to a process, as ``makedumpfile -d 8`` does: by its struct page."""
    fd = os.open(source, os.O_RDONLY)
    image = open_image(Files(File(fd, str(source))))
    assert isinstance(image, LinuxImage)
    kernel = image.kernel
    page = kernel.prog.type("struct page")
    base = kernel.prog["vmemmap_base"].value_()

    def anonymous(pfn: int) -> bool:
        address = base + pfn * page.size + offsetof(page, "mapping")
        try:
            return bool(kernel.memory.kernel(address, 8)[0] & PAGE_MAPPING_ANON)
        except KvmError:
            return False

    return anonymous


def filtered(source: Path, target: Path) -> tuple[int, int]:
    """The dump as ``makedumpfile -z -d 31`` makes it: without the pages of processes."""
    users = is_users(source)
    return zstd(source, target, keep=lambda pfn: not users(pfn))


@contextmanager
def daemon(folder: Path) -> Iterator[str]:
    """A kvmd that forgets an image as soon as it is closed."""
    config = folder / "kvmd.toml"
    config.write_text("[limits]\nworker_linger = 0\n")
    target = f"unix:{folder}/kvmd.sock"
    command = [sys.executable, "-m", "kvmd", "--config", str(config), "--listen", target, "--dump-dir", str(folder)]
    with (folder / "log").open("w+") as log, subprocess.Popen(command, stderr=log) as process:
        while "ready" not in (folder / "log").read_text():
            time.sleep(0.05)
        yield target
        process.terminate()


def in_process(dump: Path) -> int:
    """The same work with no daemon: drgn, kvmd's BTF reader and process walk in this process."""
    fd = os.open(dump, os.O_RDONLY)
    try:
        return sum(1 for _ in open_image(Files(File(fd, str(dump)))).processes(process_pb2.GetProcsRequest()))
    finally:
        os.close(fd)


def through_kvmd(target: str, dump: Path) -> int:
    """The C-style calls of libkvm."""
    os.environ["KVMD_TARGET"] = target
    kd = libkvm.kvm_open(None, str(dump), None, os.O_RDONLY, "open_to_ps")
    assert kd is not None
    processes = libkvm.kvm_getprocs(kd, libkvm.KERN_PROC_ALL, 0)
    assert processes is not None, libkvm.kvm_geterr(kd)
    libkvm.kvm_close(kd)
    return len(processes)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--most", type=float, help="fail if the ratio is greater")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as name:
        folder = Path(name)
        dump = folder / "vmcore"
        kept, total = filtered(unpacked("debian-6.1-panic/vmcore.kdump"), dump)
        print(f"{machine()}\nDebian 6.1 dump, zstd -d 31: {kept} of {total} pages, {dump.stat().st_size >> 20} MiB")
        ratio = 0.0
        with daemon(folder) as target:
            count = through_kvmd(target, dump)
            assert count == in_process(dump)
            for pause, what in ((0.0, "back to back"), (3.0, "idle service")):

                def daemon_side(pause: float = pause) -> float:
                    time.sleep(pause)
                    return seconds(lambda: through_kvmd(target, dump))

                ours, theirs = in_turn(daemon_side, lambda: seconds(lambda: in_process(dump)), options.rounds)
                ratio = ours / theirs
                both = f"kvmd {ours * 1e3:.0f} ms, in-process {theirs * 1e3:.0f} ms"
                print(f"{what}: {count} processes; {both}, ratio {ratio:.2f}")
    if options.most is not None and ratio > options.most:
        print(f"ratio {ratio:.2f} is over {options.most}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
