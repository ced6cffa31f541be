"""``kvmctl swap``: swap areas, as swapon(8) and BSD's pstat(8) -s show them, and which image has which."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from libkvm.cli.command import Answer, Command
from libkvm.cli.rows import aligned
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.records import SwapArea

_HEAD = ("TYPE", "SIZE", "USED", "PRIO", "UUID", "IMAGE", "NAME")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """List swap areas, and their total."""
    areas = kernel.swap_areas()
    total = {"size_bytes": sum(area.size_bytes for area in areas), "used_bytes": sum(area.used_bytes for area in areas)}
    return Answer({"areas": areas, "total": total}, _lines(areas, total))


def _lines(areas: Sequence[SwapArea], total: dict[str, int]) -> Iterator[str]:
    rows = [_HEAD]
    for area in areas:
        sizes = (_kib(area.size_bytes), _kib(area.used_bytes))
        names = (area.uuid or "-", printable(area.satisfied_by) or "-", printable(area.path))
        rows.append((area.kind, *sizes, str(area.priority), *names))
    rows.append(("", _kib(total["size_bytes"]), _kib(total["used_bytes"]), "", "", "", "total"))
    return aligned(rows)


def _kib(size: int) -> str:
    return str(size // 1024)


COMMAND = Command("list swap areas", run)
