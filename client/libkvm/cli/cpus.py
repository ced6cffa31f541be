"""``kvmctl cpus``: CPUs, and how they spent their time since boot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from libkvm.cli.command import Answer, Command
from libkvm.cli.rows import aligned
from libkvm.kernel import Kernel
from libkvm.records import Cpu, CpuTimes

_STATES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """List CPUs and their times."""
    cpus, times = kernel.cpus(), kernel.cpu_times()
    return Answer({"cpus": cpus, "times": times}, _lines(cpus, times))


def _lines(cpus: Sequence[Cpu], times: Sequence[CpuTimes]) -> Iterator[str]:
    rows = [("CPU", *map(str.upper, _STATES), "OFFSET")]
    spent = {each.cpu: each for each in times}
    if -1 in spent:
        rows.append(("all", *_seconds(spent[-1]), "-"))
    for cpu in cpus:
        offset = "-" if cpu.offset is None else f"{cpu.offset:016x}"
        shown = _seconds(spent[cpu.number]) if cpu.number in spent else ["-"] * len(_STATES)
        rows.append((str(cpu.number), *shown, offset))
    return aligned(rows)


def _seconds(times: CpuTimes) -> list[str]:
    return [f"{getattr(times, f'{state}_ns') / 10**9:.2f}" for state in _STATES]


COMMAND = Command("list CPUs and the seconds they spent", run)
