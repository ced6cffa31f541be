"""Rows of large reads: all of a dump in pieces of 1 MiB, cold and by a second client; and a stream of 256 MiB."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import libkvm
from bench.measure import in_turn
from bench.rows import MIB, PAGE, Row, Subject, program

STREAM = 256 * MIB
HIGH = 64 << 30  # where the physical memory lies that is put into an ELF dump
LARGE = [(HIGH + at, MIB) for at in range(0, STREAM, MIB)]
"""All of it, in pieces."""


def runs(pages: list[int]) -> list[tuple[int, int]]:
    """Ranges of at most 1 MiB that cover pages, which are in order."""
    found: list[tuple[int, int]] = []
    for page in pages:
        if found and sum(found[-1]) == page and found[-1][1] < MIB:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((page, PAGE))
    return found


def _rate(read: Callable[[int, int], object], ranges: list[tuple[int, int]]) -> float:
    """Seconds for a MiB."""
    began = time.perf_counter()
    for address, length in ranges:
        read(address, length)
    return (time.perf_counter() - began) / sum(length for _, length in ranges) * MIB


def cold(subject: Subject, rounds: int) -> Row:
    """Each round has a worker that has read nothing yet, and a Program that hasn't."""
    ranges = runs(subject.pages())
    path, target = str(subject.path), subject.client.target
    subject.close()

    def ours() -> float:
        with libkvm.connect(target) as client:
            time.sleep(2.5)  # until the worker of the round before is gone, and the next one stands ready
            with client.open(path) as kernel:
                kernel.read(ranges[0][0], 8)
                return _rate(kernel.read, ranges)

    def theirs() -> float:
        prog = program(subject.path)
        prog.read(ranges[0][0], 8)
        return _rate(prog.read, ranges)

    first, second = in_turn(ours, theirs, rounds)
    what = f"1 MiB reads over {sum(length for _, length in ranges) >> 20} MiB of kernel memory, cold: {subject.name}"
    return Row(what, "drgn.Program.read in-process", first, second, 1, least=True, unit="a MiB")


def again(subject: Subject, rounds: int) -> Row:
    """A second client, while the first has the dump open."""
    ranges = runs(subject.pages())
    _rate(subject.kernel.read, ranges)

    def ours() -> float:
        with libkvm.connect(subject.client.target) as client, client.open(str(subject.path)) as kernel:
            kernel.read(ranges[0][0], 8)
            return _rate(kernel.read, ranges)

    first, second = in_turn(ours, lambda: _rate(program(subject.path).read, ranges), rounds)
    what = f"the same, a second client: {subject.name}"
    return Row(what, "drgn.Program.read in-process", first, second, 5, least=True, unit="a MiB")


def stream(subject: Subject, rounds: int) -> Row:
    """256 MiB of physical memory of an ELF dump, which is in the page cache of the file system."""
    read = partial(subject.kernel.read, physical=True)
    return _large("256 MiB from an ELF dump, 1 MiB a read", subject, lambda: _rate(read, LARGE), rounds)


def looked_through(subject: Subject, rounds: int) -> Row:
    """The same, where nobody wants a copy of its own: for a search, or a sum."""

    def ours() -> float:
        began = time.perf_counter()
        seen = sum(len(view) for view in subject.kernel.views(HIGH, STREAM, physical=True))
        assert seen == STREAM
        return (time.perf_counter() - began) / STREAM * MIB

    return _large("256 MiB from an ELF dump, by Kernel.views", subject, ours, rounds)


def _large(what: str, subject: Subject, ours: Callable[[], float], rounds: int) -> Row:
    read = subject.drgn.read
    first, second = in_turn(ours, lambda: _rate(lambda address, length: read(address, length, True), LARGE), rounds)
    return Row(what, "drgn.Program.read in-process", first, second, 0.8, least=True, unit="a MiB")


def with_memory(source: Path, target: Path, size: int = STREAM, *, sparse: bool = False) -> None:
    """An ELF dump with so much more of physical memory: one more program header, at the end of the file.

    :param sparse: whether that memory is a hole in the file, and takes no place on the disk.
    """
    old = source.read_bytes()
    phoff, phentsize, phnum = struct.unpack_from("<32xQ14xHH", old)
    table = old[phoff : phoff + phentsize * phnum]
    at_data = len(old) + -len(old) % PAGE
    head = bytearray(old)
    struct.pack_into("<Q", head, 32, at_data + size)
    struct.pack_into("<H", head, 56, phnum + 1)
    piece = os.urandom(MIB - 8)
    with target.open("wb") as out:
        out.write(head)
        out.seek(at_data)
        if not sparse:
            for n in range(size // MIB):
                out.write(n.to_bytes(8, "little") + piece)
        out.seek(at_data + size)
        out.write(table + struct.pack("<IIQQQQQQ", 1, 7, at_data, 0, HIGH, size, size, PAGE))
