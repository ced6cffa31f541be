"""``kvmctl files``: open files, as BSD's fstat(1) shows them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from libkvm.cli.command import Answer, Command
from libkvm.cli.rows import aligned
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.records import OpenFile

_HEAD = ("PID", "FD", "TYPE", "MODE", "UID", "POSITION", "INODE", "NAME")
_MODES = ("r", "w", "rw", "-")  # by open(2)'s O_ACCMODE


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-p", "--pid", type=int, help="of the process with this id")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """List open files."""
    found = kernel.files(options.pid, timeout=options.timeout)
    return Answer({"files": found}, _lines(found))


def _lines(found: Sequence[OpenFile]) -> Iterator[str]:
    rows = [_HEAD]
    for file in found:
        numbers = (str(file.uid), str(file.position), str(file.inode))
        kind = (printable(file.type), _MODES[file.flags & 3])
        rows.append((str(file.pid), str(file.fd), *kind, *numbers, printable(file.path)))
    return aligned(rows)


COMMAND = Command("list open files", run, arguments)
