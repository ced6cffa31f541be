"""64 MiB of a process's swapped-out memory through kvm_uread, and the same bytes by read(2) of the swap image.

    python -m bench.swap_read [--rounds N] [--least MB_PER_S]

The image is in the page cache. Once its slots are in the order of the pages, as a kernel swaps a process out at once;
once no two of them are.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import libkvm
from bench.measure import in_turn, machine, seconds
from bench.open_to_ps import daemon
from bench.swapped import PAGE, SIZE, Swapped, swapped

_CHUNK = 1 << 20


def plain(case: Swapped) -> bytes:
    """The slots in the pages' order, by pread(2) a page or a run."""
    fd = os.open(case.swap, os.O_RDONLY)
    try:
        if case.slots[1] == case.slots[0] + 1:
            at = case.slots[0] * PAGE
            return b"".join(os.pread(fd, _CHUNK, at + done) for done in range(0, SIZE, _CHUNK))
        return b"".join(os.pread(fd, PAGE, slot * PAGE) for slot in case.slots)
    finally:
        os.close(fd)


def measure(case: Swapped, target: str, rounds: int) -> float:
    """Print a line; answers megabytes a second."""
    os.environ["KVMD_TARGET"] = target
    kd = libkvm.kvm_open(None, str(case.dump), str(case.swap), os.O_RDONLY, "swap_read")
    assert kd is not None
    buf = bytearray(SIZE)

    def ours() -> None:
        count = libkvm.kvm_uread(kd, case.pid, case.address, buf)
        assert count == SIZE, libkvm.kvm_geterr(kd)

    ours()
    assert buf == plain(case)
    mine, theirs = in_turn(lambda: seconds(ours), lambda: seconds(lambda: plain(case)), rounds)
    libkvm.kvm_close(kd)
    rate = SIZE / 1e6 / mine
    order = "in order" if case.slots[1] == case.slots[0] + 1 else "shuffled"
    print(
        f"slots {order}: kvm_uread {rate:.0f} MB/s, read(2) {SIZE / 1e6 / theirs:.0f} MB/s, ratio {mine / theirs:.1f}"
    )
    return rate


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--least", type=float, help="fail if the slots in order are read more slowly, in MB/s")
    options = parser.parse_args()
    print(f"{machine()}\n{SIZE >> 20} MiB swapped out, Debian 6.1 dump, image in the page cache")
    rates = []
    for shuffled in (False, True):
        with tempfile.TemporaryDirectory(prefix="kvmd-bench-") as name:
            case = swapped(Path(name), shuffled=shuffled)
            with daemon(Path(name)) as target:
                rates.append(measure(case, target, options.rounds))
    if options.least is not None and rates[0] < options.least:
        print(f"{rates[0]:.0f} MB/s is less than {options.least:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
