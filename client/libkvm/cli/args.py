"""``kvmctl args``: a process's arguments and environment, as pargs(1) shows them."""

from __future__ import annotations

import argparse

from libkvm.cli.command import Answer, Command
from libkvm.errors import KvmError
from libkvm.kernel import Kernel
from libkvm.printable import printable


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("pid", type=int, help="the process's id")
    parser.add_argument("-e", "--environ", action="store_true", help="the environment too")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Read the strings; of those that can't be read to the end, what can be."""
    document: dict[str, object] = {"pid": options.pid}
    lines: list[str | bytes] = []
    failures: list[KvmError] = []
    readers = {"args": (kernel.argv, "argv"), "environ": (kernel.environ, "envp")}
    for key, (read, word) in readers.items():
        if key == "environ" and not options.environ:
            continue
        try:
            values = read(options.pid)
        except KvmError as failure:
            values = failure.partial
            failures.append(failure)
        document[key] = values
        lines += [f"{word}[{index}]: {printable(value)}" for index, value in enumerate(values)]
    return Answer(document, lines, failures)


COMMAND = Command("show a process's arguments", run, arguments)
