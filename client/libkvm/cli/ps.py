"""``kvmctl ps``: processes, as ps(1) shows them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from libkvm.cli.command import Answer, Command
from libkvm.cli.rows import aligned
from libkvm.errors import AccessError
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.processes import Filter
from libkvm.records import Process

_HEAD = ("UID", "PID", "PPID", "S", "NI", "VSZ", "RSS", "COMMAND")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-H", "--threads", action="store_true", help="list every thread")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("-p", "--pid", type=int, help="the process with this id")
    only.add_argument("-u", "--uid", type=int, help="processes of this effective user id")
    only.add_argument("-t", "--tty", type=int, help="processes of this terminal's device number; -1: of none")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """List processes, with their arguments where the policy allows it."""
    only = Filter()
    if options.pid is not None:
        only = Filter(pid=options.pid)
    elif options.uid is not None:
        only = Filter(uid=options.uid)
    elif options.tty is not None:
        only = Filter(tty=options.tty)
    try:
        found = kernel.processes(threads=options.threads, arguments=True, timeout=options.timeout, **only)
    except AccessError:
        found = kernel.processes(threads=options.threads, timeout=options.timeout, **only)
    return Answer({"processes": found}, _lines(found))


def command(process: Process) -> str:
    """Answer the arguments; where there are none, the name in brackets, as ps(1) does."""
    return printable(" ".join(process.args)) if process.args else f"[{printable(process.comm)}]"


def _lines(found: Sequence[Process]) -> Iterator[str]:
    rows = [_HEAD] + [
        (
            str(process.euid),
            str(process.pid),
            str(process.ppid),
            printable(process.state),
            str(process.nice),
            _kib(process.vsz_bytes),
            _kib(process.rss_bytes),
            command(process),
        )
        for process in found
    ]
    return aligned(rows)


def _kib(size: int | None) -> str:
    return "-" if size is None else str(size // 1024)


COMMAND = Command("list processes", run, arguments)
