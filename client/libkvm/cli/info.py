"""``kvmctl info``: facts about the image."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping

from libkvm.cli.command import Answer, Command, fields
from libkvm.kernel import Kernel
from libkvm.printable import printable

_HEXADECIMAL = {"kaslr_offset", "phys_base"}


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Describe the image."""
    facts = fields(kernel.info)
    return Answer(facts, _lines(facts))


def _lines(facts: Mapping[str, object]) -> Iterator[str]:
    width = max(map(len, facts))
    for name, value in facts.items():
        if value is None or value in ("", ()):
            continue
        if isinstance(value, tuple):
            shown = " ".join(f"{number:.2f}" for number in value)
        elif name in _HEXADECIMAL and isinstance(value, int):
            shown = f"{value:#x}"
        elif isinstance(value, bool):
            shown = "yes" if value else "no"
        else:
            shown = printable(str(value))
        yield f"{name:{width}}  {shown}"


COMMAND = Command("describe the image", run)
