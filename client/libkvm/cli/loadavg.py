"""``kvmctl loadavg``: the load averages, as uptime(1) shows them."""

from __future__ import annotations

import argparse

from libkvm.cli.command import Answer, Command
from libkvm.kernel import Kernel


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Read the load averages."""
    values = kernel.load_average()
    return Answer({"load_average": values}, [" ".join(f"{value:.2f}" for value in values)])


COMMAND = Command("show the load averages over 1, 5 and 15 minutes", run)
