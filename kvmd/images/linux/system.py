"""Load averages and CPU times, as /proc/loadavg and /proc/stat count them."""

from __future__ import annotations

from typing import Any

from drgn.helpers.linux.timekeeping import ktime_get_coarse_ns

from kvmd.images.linux.cpus import Cpus
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import LITTLE
from kvmd.v1 import system_pb2

_FIXED_1 = 1 << 11  # include/linux/sched/loadavg.h
_ALL = (1 << 64) - 1
# By enum cpu_usage_stat of include/linux/kernel_stat.h; nanoseconds since 4.11.
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
_IDLE_ACTIVE = 1 << 2  # TS_FLAG_IDLE_ACTIVE of tick_sched.flags, since 6.9; a bit field before
_TICK = {
    "idle": ("idle_sleeptime",),
    "iowait": ("iowait_sleeptime",),
    "entry": ("idle_entrytime",),
    "flags": ("flags",),
}


def load_average(kernel: Kernel) -> list[float]:
    """The load over 1, 5 and 15 minutes; /proc/loadavg shows the same, rounded to hundredths.

    :raises KvmError: NO_SYMBOLS, or the fault of the page that holds them.
    """
    return [value / _FIXED_1 for value in kernel.memory.words(kernel.address("avenrun"), 3)]


class CpuTimes:
    """CPU times of one kernel, by fs/proc/stat.c.

    While a CPU sleeps without a tick, the kernel counts its idle time (or that of waiting for I/O) when it wakes up;
    until then /proc/stat adds the time since it fell asleep, and so does this. "Now" is the kernel's own coarse clock,
    which a running CPU advances with every tick: in a dump of a kernel all of whose CPUs slept, the end of that sleep
    is missing. What CPUs with nohz_full spent since their last tick is not added either.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel) -> None:
        kernel.need_types()
        self._kernel = kernel
        self._cpus = Cpus(kernel)
        prog, read = kernel.prog, kernel.memory.kernel
        with kernel.reading("the CPU times"):
            columns = {name: f"cpustat.{prog[f'CPUTIME_{name.upper()}'].value_()}" for name in _COLUMNS}
            # In 7.2 the sleep in progress is told here, and those before are counted in the columns.
            sleep = {"asleep": ("idle_elapse",), "entry": ("idle_entrytime",)}
            # 7.2: what was stolen in sleeps before, and goes off this one.
            sleep |= {f"{name}_stolen": (f"idle_stealtime.{i}",) for i, name in enumerate(("idle", "iowait"))}
            wanted = {name: (place,) for name, place in columns.items()} | sleep
            self._stat = Fields(prog, read, "struct kernel_cpustat", wanted)
            self._waiting = Fields(prog, read, "struct rq", {"count": ("nr_iowait",)})
        self._base = {name: kernel.address(name) for name in ("kernel_cpustat", "runqueues")}
        self._tick = self._tickless()

    def _tickless(self) -> Fields | None:
        """How sleeps are counted apart; None if this kernel counts them in the columns."""
        active, place = self._kernel.builtin("tick_nohz_active"), self._kernel.builtin("tick_cpu_sched")
        if active is None or place is None or not any(self._kernel.memory.kernel(active.value, 4)):
            return None
        self._base["tick_cpu_sched"] = place.value
        fields = Fields(self._kernel.prog, self._kernel.memory.kernel, "struct tick_sched", _TICK)
        return fields if "idle" in fields.offsets else None

    def read(self) -> list[system_pb2.CpuTimes]:
        """The sum over all possible CPUs first, then each online one. All times are nanoseconds since boot.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that holds a CPU's variables.
        """
        offsets, online = self._cpus.offsets, set(self._cpus.online)
        with self._kernel.reading("the clock"):
            now = ktime_get_coarse_ns(self._kernel.prog).value_()
        total, times = dict.fromkeys(_COLUMNS, 0), []
        for cpu in self._cpus.possible:
            columns = self._columns(offsets[cpu], now, cpu in online)
            for name in _COLUMNS:
                total[name] += columns[name]
            if cpu in online:
                times.append(_record(cpu, columns))
        return [_record(-1, total), *times]

    def _at(self, name: str, offset: int) -> int:
        return self._base[name] + offset & _ALL

    def _columns(self, offset: int, now: int, online: bool) -> dict[str, int]:
        stat: dict[str, Any] = self._stat(self._at("kernel_cpustat", offset))
        if not online:
            return stat
        asleep, entry = bool(stat["asleep"]), stat["entry"]
        if self._tick is not None:
            at = self._at("tick_cpu_sched", offset)
            tick: dict[str, Any] = self._tick(at)
            stat |= {"idle": tick["idle"], "iowait": tick["iowait"]}
            asleep, entry = self._asleep(at, tick["flags"]), tick["entry"]
        if asleep:
            column = "iowait" if self._waiting(self._at("runqueues", offset))["count"] else "idle"
            slept = max(now - entry, 0)
            stat[column] += slept - min(stat[f"{column}_stolen"] or 0, slept)
        return stat

    def _asleep(self, address: int, flags: int | None) -> bool:
        """Whether a CPU sleeps now."""
        if flags is not None:
            return bool(flags & _IDLE_ACTIVE)
        with self._kernel.reading("the CPUs' sleep"):
            member = self._kernel.prog.type("struct tick_sched").member("idle_active")
        memory, bit = self._kernel.memory, member.bit_offset % 8
        word = memory.kernel(address + member.bit_offset // 8, 1)[0]
        return bool(word >> (bit if memory.order == LITTLE else 7 - bit) & 1)


def _record(cpu: int, columns: dict[str, int]) -> system_pb2.CpuTimes:
    times = {f"{name}_ns": columns[name] & _ALL for name in _COLUMNS}
    return system_pb2.CpuTimes(cpu=cpu, **times)
