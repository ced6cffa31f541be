"""Where a long read's processor time goes, in this process alone: no daemon, no socket, no other process's load.

    python -m bench.profile DUMP

One line a layer, in milliseconds for a MiB of 32 MiB of the direct mapping, the least of some rounds.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.bulk import runs
from bench.rows import MIB, PAGE, program
from kvmd import fast
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kdumpcodecs import unpack
from kvmd.v1 import memory_pb2
from kvmd.worker.cache import PageCache
from kvmd.worker.fast import STEP, Reader

_PAGES = 32 * MIB // PAGE
_CACHE = 256 * MIB
_ROUNDS = 5
_KERNEL = memory_pb2.ADDRESS_SPACE_KERNEL


def ranges(image: LinuxImage) -> list[tuple[int, int]]:
    """What is read, a worker's step at a time."""
    found = image.kernel.builtin("page_offset_base")
    base = int.from_bytes(image.kernel.memory.kernel(found.value, 8), "little") if found else 0xFFFF888000000000
    trouble = image.kernel.dump.layout.trouble
    pages = [base + at for at in range(0, 1 << 30, PAGE) if trouble(at) is None][:_PAGES]
    return [(at + n, min(STEP, size - n)) for at, size in runs(pages) for n in range(0, size, STEP)]


def opened(path: Path, fd: int, taken: list[tuple[int, int, Sequence[bytes]]]) -> LinuxImage:
    """The dump; what is unpacked of it is noted."""

    def noted(codec: int, size: int, packed: Sequence[bytes], into: memoryview) -> None:
        taken.append((codec, size, packed))
        unpack(codec, size, packed, into)

    return LinuxImage(Files(File(fd, path.name), unpacker=lambda: noted))


def least(work: Callable[[], object], size: int) -> float:
    """Milliseconds of processor time for a MiB."""
    times = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times) / size * MIB * 1e3


def main() -> None:
    """Measure and print."""
    path = Path(sys.argv[1])
    fd = os.open(path, os.O_RDONLY)
    taken: list[tuple[int, int, Sequence[bytes]]] = []
    image, noted = LinuxImage(Files(File(fd, path.name))), opened(path, fd, taken)
    wanted, buffer = ranges(image), memoryview(bytearray(STEP))
    total = sum(length for _, length in wanted)
    left = [address for address, length in wanted if not noted.read_into(address, buffer[:length], _KERNEL)]
    pages = list(taken)

    def by_drgn() -> None:
        prog = program(path)
        for address, length in wanted:
            prog.read(address, length)

    def cached() -> None:
        memory = os.memfd_create("bench")
        size = fast.cache_size(fast.slots(_CACHE))
        os.ftruncate(memory, size)
        reader = Reader(image)
        reader.cache = PageCache(memory, size)
        os.close(memory)
        for address, length in wanted:
            reader.keep(address, length)

    print(f"drgn.Program.read in-process       {least(by_drgn, total):.2f}")
    codec = least(lambda: [unpack(*each, buffer[: len(each[2]) * each[1]]) for each in pages], total)
    print(f"the codec alone                    {codec:.2f}")
    into = least(lambda: [image.read_into(address, buffer[:length], _KERNEL) for address, length in wanted], total)
    print(f"image.read_into                    {into:.2f}")
    print(f"a worker's reads, into the cache   {least(cached, total):.2f}")
    print(f"left to drgn: {len(left)} of {len(wanted)} reads")


if __name__ == "__main__":
    main()
