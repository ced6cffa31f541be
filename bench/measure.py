"""How a measurement is taken: both sides in turn, medians, the machine described."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """How long one run takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float]:
    """The medians of both sides, each run once a round, after one round that does not count."""
    pairs = [(first(), second()) for _ in range(rounds + 1)][1:]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def machine() -> str:
    """One line on where this was measured."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}"
