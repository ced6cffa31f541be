"""What /proc says of the kernel as a whole.

Sources: proc_version(5), proc_sys_kernel(5), proc_meminfo(5), proc_loadavg(5), proc_stat(5), proc_softirqs(5),
proc_swaps(5), uname(2), clock_gettime(2).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from kvmd.errors import KvmError
from kvmd.images.procfs import parse, tree
from kvmd.v1 import image_pb2, system_pb2

_SMALL = 1 << 16
_STAT = 4 << 20  # 8192 CPUs have lines of some 100 bytes each; they come first
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
# Documentation/admin-guide/tainted-kernels.rst, by bit.
_TAINTS = "PFSRMBUDAWCIOELKXTNJ"
_MOST = (1 << 64) - 1


def info(proc: int) -> image_pb2.Info:
    """Describe the running kernel; a field whose file can't be read is absent."""
    uts = os.uname()
    known: dict[str, Any] = {
        "format": "procfs",
        "live": True,
        "release": uts.release,
        "version": uts.version,
        "machine": uts.machine,
        "nodename": uts.nodename,
        "page_size": os.sysconf("SC_PAGE_SIZE"),
        "uptime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        "time_ns": time.time_ns(),
    }
    for name, field in _FIELDS.items():
        try:
            known[name] = field(proc)
        except KvmError:
            continue
    return image_pb2.Info(**known)


def _banner(proc: int) -> str:
    return tree.source(proc, "version", _SMALL).decode("utf-8", "replace").removesuffix("\n")


def _taint(proc: int) -> str:
    text = tree.source(proc, "sys/kernel/tainted", _SMALL).strip()
    mask = int(text) if text.isdigit() else 0
    letters = "".join(letter for bit, letter in enumerate(_TAINTS) if mask >> bit & 1)
    return letters if not mask or mask & 1 else "G" + letters


def load_average(proc: int) -> list[float]:
    """Over 1, 5 and 15 minutes.

    :raises KvmError: SOURCE_NOT_FOUND, SOURCE_ACCESS, SOURCE_IO, CORRUPT_DATA; as all functions here.
    """
    return parse.load_average(tree.source(proc, "loadavg", _SMALL))


def cpu_times(proc: int) -> list[system_pb2.CpuTimes]:
    """The sum, then each online CPU; a column that the kernel doesn't have is 0."""
    tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    return [
        system_pb2.CpuTimes(
            cpu=cpu,
            **{f"{name}_ns": min(value * tick, _MOST) for name, value in zip(_COLUMNS, ticks, strict=False)},
        )
        for cpu, ticks in parse.cpu_times(tree.source(proc, "stat", _STAT))
    ]


def _online(proc: int) -> list[int]:
    return [cpu for cpu, _ in parse.cpu_times(tree.source(proc, "stat", _STAT)) if cpu >= 0]


def cpus(proc: int) -> system_pb2.GetCpusResponse:
    """The possible CPUs: those of /proc/softirqs; where there is no such file, those that are online."""
    online = _online(proc)
    try:
        possible = sorted({*parse.possible_cpus(tree.source(proc, "softirqs", _SMALL)), *online})
    except KvmError:
        possible = online
    records = [system_pb2.Cpu(number=cpu, online=cpu in set(online)) for cpu in possible]
    return system_pb2.GetCpusResponse(max_cpus=max(possible, default=-1) + 1, cpus=records)


def swap_areas(proc: int) -> list[system_pb2.SwapArea]:
    """The swap areas; their numbers are their places in the list, for /proc doesn't show the kernel's."""
    return [
        system_pb2.SwapArea(
            path=area.path,
            number=number,
            kind=area.kind,
            size_bytes=area.size,
            used_bytes=area.used,
            priority=area.priority,
        )
        for number, area in enumerate(parse.swaps(tree.source(proc, "swaps", _SMALL)))
    ]


_FIELDS: dict[str, Callable[[int], Any]] = {
    "banner": _banner,
    "taint": _taint,
    "load_average": load_average,
    "cpus_online": lambda proc: len(_online(proc)),
    "memory_bytes": lambda proc: parse.memory(tree.source(proc, "meminfo", _SMALL)),
}
