"""``kvmctl dmesg``: the kernel's log, as dmesg(1) shows it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from libkvm.cli.command import Answer, Command
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.records import LogRecord


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Read the log."""
    records = kernel.log(timeout=options.timeout)
    return Answer({"records": records}, (line for entry in records for line in _lines(entry)))


def _lines(entry: LogRecord) -> Iterator[str]:
    seconds, rest = divmod(entry.timestamp_ns, 10**9)
    for line in entry.text.split("\n"):
        yield f"[{seconds:5}.{rest // 1000:06}] {printable(line)}"


COMMAND = Command("show the kernel's log", run)
