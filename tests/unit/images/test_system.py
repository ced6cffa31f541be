"""Load averages, CPU times and CPUs against the guest's own /proc, and against drgn's helpers."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from drgn.helpers.linux.cpumask import for_each_online_cpu, for_each_possible_cpu
from drgn.helpers.linux.percpu import per_cpu
from drgn.helpers.linux.sched import cpu_curr
from drgn.helpers.linux.timekeeping import ktime_get_coarse_ns

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.cpus import Cpus
from kvmd.images.linux.system import CpuTimes, load_average
from kvmd.v1 import memory_pb2 as mem
from kvmd.v1 import process_pb2
from overlay import Overlay

COLUMNS = {
    "user_ns": "CPUTIME_USER",
    "nice_ns": "CPUTIME_NICE",
    "system_ns": "CPUTIME_SYSTEM",
    "irq_ns": "CPUTIME_IRQ",
    "softirq_ns": "CPUTIME_SOFTIRQ",
    "steal_ns": "CPUTIME_STEAL",
    "guest_ns": "CPUTIME_GUEST",
    "guest_nice_ns": "CPUTIME_GUEST_NICE",
}
ALL = 2**64 - 1


def test_load_average_is_what_proc_showed(dump: Any) -> None:
    values = dump.image.load_average()
    # fs/proc/loadavg.c adds half a hundredth and cuts.
    shown = [f"{int((value + 1 / 200 + 1e-9) * 100) / 100:.2f}" for value in values]
    assert shown == dump.truth["loadavg"].split()[:3]


def test_load_average_without_types(from_bytes: Any) -> None:
    path, truth = fixture("micro/zlib")
    image = from_bytes(path.read_bytes())
    with pytest.raises(KvmError) as caught:
        image.load_average()
    assert caught.value.reason is Reason.NO_SYMBOLS
    assert truth["loadavg"]


def test_ticks_are_what_drgn_reads(dump: Any) -> None:
    prog = dump.image.kernel.prog
    total, *times = dump.image.cpu_times()
    assert total.cpu == -1
    assert [t.cpu for t in times] == list(for_each_online_cpu(prog)) == list(range(dump.truth["cpus_online"]))
    for t in times:
        stat = per_cpu(prog["kernel_cpustat"], t.cpu).cpustat
        assert {name: getattr(t, name) for name in COLUMNS} == {
            name: stat[prog[constant]].value_() for name, constant in COLUMNS.items()
        }
    for field in total.DESCRIPTOR.fields:
        if field.name != "cpu":  # no CPU of the guests is possible but not online
            assert getattr(total, field.name) == sum(getattr(t, field.name) for t in times)


def test_idle_time_goes_on_from_what_proc_uptime_showed(dump: Any) -> None:
    shown = float(dump.truth["uptime"].split()[1])
    total, *times = dump.image.cpu_times()
    later = (ktime_get_coarse_ns(dump.image.kernel.prog).value_() - dump.truth["monotonic_ns"]) / 1e9
    assert shown - 0.02 <= total.idle_ns / 1e9 <= shown + later * len(times) + 0.02


def test_sleep_is_counted_apart(dump: Any) -> None:
    prog = dump.image.kernel.prog
    for t in dump.image.cpu_times()[1:]:
        tick = per_cpu(prog["tick_cpu_sched"], t.cpu)
        asleep = ktime_get_coarse_ns(prog).value_() - tick.idle_entrytime.value_() if tick.idle_active else 0
        waits = per_cpu(prog["runqueues"], t.cpu).nr_iowait.counter.value_()
        assert t.idle_ns == tick.idle_sleeptime.value_() + (0 if waits else max(asleep, 0))
        assert t.iowait_ns == tick.iowait_sleeptime.value_() + (max(asleep, 0) if waits else 0)


def sleeping(qemu: Any, cpu: int, waits: int) -> Any:
    """A kernel whose CPU has slept for the last half second."""
    kernel, prog = Overlay(qemu.image.kernel), qemu.image.kernel.prog
    tick = per_cpu(prog["tick_cpu_sched"], cpu)
    now = ktime_get_coarse_ns(prog).value_()
    kernel.put(tick.idle_entrytime.address_, now - 500_000_000)
    at = tick.address_ + prog.type("struct tick_sched").member("idle_active").bit_offset // 8
    kernel.put(at, 0xFF, 1)
    kernel.put(per_cpu(prog["runqueues"], cpu).nr_iowait.address_, waits, 4)
    return kernel


@pytest.mark.parametrize(("waits", "column"), [(0, "idle"), (2, "iowait")])
def test_a_sleep_in_progress_counts(qemu: Any, waits: int, column: str) -> None:
    tick = per_cpu(qemu.image.kernel.prog["tick_cpu_sched"], 1)
    times = CpuTimes(sleeping(qemu, 1, waits)).read()[2]
    assert getattr(times, f"{column}_ns") == getattr(tick, f"{column}_sleeptime").value_() + 500_000_000


def test_without_nohz_the_columns_count(qemu: Any) -> None:
    kernel, prog = Overlay(qemu.image.kernel), qemu.image.kernel.prog
    kernel.put(kernel.address("tick_nohz_active"), 0, 4)
    for t in CpuTimes(kernel).read()[1:]:
        stat = per_cpu(prog["kernel_cpustat"], t.cpu).cpustat
        assert t.idle_ns == stat[prog["CPUTIME_IDLE"]].value_()
        assert t.iowait_ns == stat[prog["CPUTIME_IOWAIT"]].value_()


def test_a_cpu_that_went_offline_counts_in_the_sum_alone(qemu: Any) -> None:
    kernel, prog = Overlay(qemu.image.kernel), qemu.image.kernel.prog
    kernel.put(kernel.address("__cpu_online_mask"), 1)
    total, *times = CpuTimes(kernel).read()
    assert [t.cpu for t in times] == [0]
    assert total.nice_ns == times[0].nice_ns + per_cpu(prog["kernel_cpustat"], 1).cpustat[1].value_()
    assert total.idle_ns == times[0].idle_ns + per_cpu(prog["kernel_cpustat"], 1).cpustat[5].value_()
    described = Cpus(kernel).describe().cpus
    assert [(c.number, c.online, c.HasField("current_task")) for c in described] == [(0, True, True), (1, False, False)]


def test_cpus(dump: Any) -> None:
    prog, answer = dump.image.kernel.prog, dump.image.cpus()
    assert answer.max_cpus == prog["nr_cpu_ids"].value_()
    assert [c.number for c in answer.cpus] == list(for_each_possible_cpu(prog))
    assert [c.number for c in answer.cpus if c.online] == list(for_each_online_cpu(prog))
    tasks = {p.task_address for p in dump.image.processes(process_pb2.GetProcsRequest(threads=True))}
    for c in answer.cpus:
        assert per_cpu(prog["runqueues"], c.number).address_ == prog["runqueues"].address_ + c.offset & ALL
        assert c.current_task == cpu_curr(prog, c.number).value_()
        assert c.current_task in tasks | {per_cpu(prog["runqueues"], c.number).idle.value_()}


def test_a_client_reaches_per_cpu_variables_by_symbol_and_offset(dump: Any) -> None:
    queues, current = dump.image.symbols(["runqueues", "current_task"])
    assert queues.found
    assert current.found
    at = dump.image.kernel.prog.type("struct rq").member("cpu").offset
    for c in dump.image.cpus().cpus:
        number = dump.image.read(queues.value + c.offset + at & ALL, 4, mem.ADDRESS_SPACE_KERNEL)
        assert struct.unpack("<i", number) == (c.number,)
        task = dump.image.read(current.value + c.offset & ALL, 8, mem.ADDRESS_SPACE_KERNEL)
        assert struct.unpack("<Q", task) == (c.current_task,)


def test_per_cpu_symbols_are_absolute_offsets(qemu: Any) -> None:
    for symbol in qemu.image.symbols(["runqueues", "current_task", "kernel_cpustat", "tick_cpu_sched"]):
        assert symbol.value < 1 << 20
        assert (symbol.n_type, symbol.size > 0) == (3, True)  # N_ABS | N_EXT


@pytest.mark.parametrize(("flags", "asleep"), [(0, False), (0b11011, False), (0b100, True), (0b110111, True)])
def test_sleep_as_newer_kernels_flag_it(qemu: Any, flags: int, asleep: bool) -> None:
    assert CpuTimes(qemu.image.kernel)._asleep(0, flags) is asleep


@pytest.mark.parametrize(
    ("asleep", "waits", "idle", "iowait"), [(0, 0, 700, 30), (1, 0, 750, 30), (1, 3, 700, 68), (0, 3, 700, 30)]
)
def test_sleep_as_the_newest_kernels_count_it(asleep: int, waits: int, idle: int, iowait: int) -> None:
    """No kernel of the fixtures has these members of kernel_cpustat (7.2)."""
    times = object.__new__(CpuTimes)
    stat = {"idle": 700, "iowait": 30, "asleep": asleep, "entry": 1950, "idle_stolen": None, "iowait_stolen": 12}
    times.__dict__ |= {"_tick": None, "_base": {"kernel_cpustat": 0, "runqueues": 0}}
    times.__dict__ |= {"_stat": lambda at: dict(stat), "_waiting": lambda at: {"count": waits}}
    columns = times._columns(0, 2000, True)
    assert (columns["idle"], columns["iowait"]) == (idle, iowait)
    assert times._columns(0, 1900, True)["idle"] == 700  # the coarse clock is behind


@pytest.mark.parametrize("count", [0, 1 << 16 | 1, 2**32 - 1])
def test_a_senseless_number_of_cpus(qemu: Any, count: int) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(kernel.address("nr_cpu_ids"), count, 4)
    for read in (Cpus(kernel).describe, CpuTimes(kernel).read):
        with pytest.raises(KvmError) as caught:
            read()
        assert caught.value.reason is Reason.CORRUPT_DATA


def test_offsets_to_nowhere(qemu: Any) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(kernel.address("__per_cpu_offset"), 0x1234_5678_0000_0000)
    for read in (Cpus(kernel).describe, CpuTimes(kernel).read):
        with pytest.raises(KvmError) as caught:
            read()
        assert caught.value.reason is Reason.NOT_MAPPED


class Uniprocessor(Overlay):
    """A kernel for one CPU has none of these symbols, and its per-CPU variables lie where their symbols say."""

    def builtin(self, name: str) -> Any:
        gone = ("nr_cpu_ids", "__cpu_possible_mask", "__cpu_online_mask", "__per_cpu_offset", "current_task")
        return None if name in gone else self._kernel.builtin(name)


def test_a_kernel_for_one_cpu(qemu: Any) -> None:
    kernel = Uniprocessor(qemu.image.kernel)
    at = kernel.address("runqueues") + kernel.prog.type("struct rq").member("curr").offset
    kernel.put(at, 0xFFFF_8880_1234_0000)
    answer = Cpus(kernel).describe()
    assert answer.max_cpus == 1
    (cpu,) = answer.cpus
    assert (cpu.number, cpu.online, cpu.offset, cpu.current_task) == (0, True, 0, 0xFFFF_8880_1234_0000)


def test_nothing_without_symbols(from_bytes: Any) -> None:
    image = from_bytes(fixture("micro/zstd").path.read_bytes())
    calls = (image.cpus, image.cpu_times, image.swap_areas, image.load_average)
    for call in (*calls, lambda: list(image.files(0)), lambda: image.read(0, 1, mem.ADDRESS_SPACE_USER, 1)):
        with pytest.raises(KvmError) as caught:
            call()
        assert caught.value.reason in (Reason.NO_SYMBOLS, Reason.NO_TYPES, Reason.EXCLUDED)


def test_load_average_is_exact(qemu: Any) -> None:
    values = [v.value_() / 2048 for v in qemu.image.kernel.prog["avenrun"]]
    assert load_average(qemu.image.kernel) == values
