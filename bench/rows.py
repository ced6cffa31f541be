"""What is measured: one function a row of the table, both sides in turn."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drgn import Program

import libkvm
from bench.measure import in_turn, seconds
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from libkvm.fast.joining import nothing

PAGE = 4096
AREA = 32 << 20
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the report. A ratio is of times (ours over theirs), or of throughput where ``least`` says so.

    :ivar ours: seconds that our side took.
    :ivar theirs: seconds that the other took.
    :ivar bound: the ratio that is asked for.
    :ivar least: whether that is the least, of throughput, and not the most, of time.
    :ivar unit: what the times are of.
    """

    what: str
    against: str
    ours: float
    theirs: float
    bound: float
    least: bool = False
    unit: str = "a read"

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours if self.least else self.ours / self.theirs

    @property
    def good(self) -> bool:
        return self.ratio >= self.bound if self.least else self.ratio <= self.bound


class Subject:
    """A dump from both sides: an opened kernel of libkvm's, and drgn in this process."""

    def __init__(self, target: str, path: Path) -> None:
        self.path, self.name = path, path.name
        self.client = libkvm.connect(target)
        self.kernel = self.client.open(str(path))
        self.plain = self.client.open(str(path))
        without(self.plain)
        self.drgn = program(path)

    def close(self) -> None:
        """Close what is open. Idempotent."""
        self.kernel.close()
        self.plain.close()
        self.client.close()

    def pages(self) -> list[int]:
        """Addresses of 32 MiB of pages of the direct mapping that are in the dump, or of all there are."""
        with open(self.path, "rb") as file:
            kernel = LinuxImage(Files(File(file.fileno(), self.name))).kernel
            found = kernel.builtin("page_offset_base")
            base = int.from_bytes(kernel.memory.kernel(found.value, 8), "little") if found else 0xFFFF888000000000
            trouble = kernel.dump.layout.trouble
            present = (base + at for at in range(0, 4 << 30, PAGE) if trouble(at) is None)
            readable = [address for address, _ in zip(present, range(AREA // PAGE * 2), strict=False)]
        return [address for address in readable if self._both(address)][: AREA // PAGE]

    def _both(self, address: int) -> bool:
        try:
            return bool(self.drgn.read(address, 8))
        except Exception:  # noqa: BLE001 - whatever it is, this address is no good for a comparison
            return False


def without(kernel: Any) -> None:
    """Have a kernel read by gRPC alone."""
    kernel._direct.drop()  # noqa: SLF001


def program(path: Path) -> Program:
    """Drgn on the same file, as its own command line sets it up."""
    prog = Program()
    prog.set_enabled_debug_info_finders([])
    prog.set_core_dump(str(path))
    return prog


def each(read: Callable[[int, int], object], addresses: list[int], length: int = 8) -> float:
    """Seconds for one of the reads."""
    began = time.perf_counter()
    for address in addresses:
        read(address, length)
    return (time.perf_counter() - began) / len(addresses)


def scattered(pages: list[int], count: int) -> list[int]:
    picked = random.Random(7)
    return [picked.choice(pages) + picked.randrange(0, PAGE, 8) for _ in range(count)]


def warm(subject: Subject, bound: float, way: str, rounds: int) -> Row:
    """8-byte reads at random over 32 MiB, after every page has been read once.

    :param way: what reads: Kernel.read, or the function that Kernel.reader makes for very many small reads.
    """
    pages = subject.pages()
    addresses = scattered(pages, 50_000)
    kernel = subject.kernel.reader() if way == "reader" else subject.kernel.read
    prog = subject.drgn.read
    for address in pages:
        assert kernel(address, 8) == prog(address, 8)
    ours, theirs = in_turn(lambda: each(kernel, addresses), lambda: each(prog, addresses), rounds)
    what = f"8-byte reads at random over {len(pages) * PAGE >> 20} MiB, warm, by Kernel.{way}: {subject.name}"
    return Row(what, "drgn.Program.read in-process", ours, theirs, bound)


def uncached(subject: Subject, rounds: int) -> Row:
    """8-byte reads that go to the worker each time, against gRPC."""
    addresses = scattered(subject.pages(), 500)
    direct = subject.kernel._direct  # noqa: SLF001 - the way without the cache
    link = direct.link(subject.kernel._id)  # noqa: SLF001
    assert link is not None
    pages, link.pages, direct.cached = link.pages, None, nothing
    try:
        ours, theirs = in_turn(
            lambda: each(subject.kernel.read, addresses * 10), lambda: each(subject.plain.read, addresses), rounds
        )
    finally:
        link.pages = pages
    return Row(f"8-byte read, not cached, fast path: {subject.name}", "the same by gRPC", ours, theirs, 20, least=True)


def vector(subject: Subject, rounds: int) -> Row:
    """5,000 scattered reads in one call."""
    ranges = [(address, 8) for address in scattered(subject.pages(), 5000)]
    read = subject.drgn.read

    def theirs() -> None:
        for address, length in ranges:
            read(address, length)

    ours, other = in_turn(lambda: seconds(lambda: subject.kernel.readv(ranges)), lambda: seconds(theirs), rounds)
    what = f"5,000 scattered 8-byte reads in one readv: {subject.name}"
    return Row(what, "5,000 of drgn.Program.read", ours, other, 2, unit="5,000")
