"""kvm_getloadavg(3), kvm_getcptime(3): a few numbers, in the caller's array or in a list of their own."""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence
from typing import Any, overload

from libkvm.compat.constants import CP_IDLE, CP_INTR, CP_NICE, CP_SYS, CP_USER, CPUSTATES
from libkvm.compat.kd import Kvm, open_handle
from libkvm.kernel import Kernel

_SAMPLES = 3  # of loadavg: over 1, 5 and 15 minutes
_TICK = 10**9 // 100  # USER_HZ: the unit of /proc/stat, 100 on all but two retired architectures


@overload
def kvm_getloadavg(kd: Kvm | None) -> list[float] | None: ...
@overload
def kvm_getloadavg(kd: Kvm | None, loadavg: MutableSequence[float], nelem: int | None = None) -> int: ...
def kvm_getloadavg(
    kd: Kvm | None, loadavg: MutableSequence[float] | None = None, nelem: int | None = None
) -> int | list[float] | None:
    """Read the load averages over 1, 5 and 15 minutes: kvm_getloadavg(3).

    :param loadavg: takes them: a list, an array or a ctypes array; an empty list is filled. None: they are returned.
    :param nelem: the most that are wanted; None: as many as ``loadavg`` has room for.
    :return: with ``loadavg`` the count, at most 3, or -1 on failure; without, the list, or None on failure.
    """
    wrong = None if loadavg is None else -1
    if (kd := open_handle(kd)) is None:
        return wrong
    if nelem is not None and nelem < 0:
        kd.invalid("kvm_getloadavg")
        return wrong
    values = kd.asked(Kernel.load_average)
    if values is None:
        return wrong
    if loadavg is None:
        return list(values)
    return _fill(loadavg, values[: (len(loadavg) or _SAMPLES) if nelem is None else nelem])


@overload
def kvm_getcptime(kd: Kvm | None) -> list[int] | None: ...
@overload
def kvm_getcptime(kd: Kvm | None, cp_time: MutableSequence[int]) -> int: ...
def kvm_getcptime(kd: Kvm | None, cp_time: MutableSequence[int] | None = None) -> int | list[int] | None:
    """Read how all CPUs together spent their time since boot: FreeBSD's kvm_getcptime(3).

    CP_USER, CP_NICE, CP_SYS, CP_INTR and CP_IDLE, in ticks of USER_HZ (1/100 s) as the columns of /proc/stat:
    CP_INTR is irq and softirq, CP_IDLE idle and iowait; time stolen by a hypervisor is in none.

    :param cp_time: takes the CPUSTATES numbers, as kvm_getloadavg's ``loadavg``. None: they are returned.
    :return: with ``cp_time`` 0, or -1 on failure; without, the list, or None on failure.
    """
    wrong = None if cp_time is None else -1
    if (kd := open_handle(kd)) is None:
        return wrong
    values = kd.asked(_states)
    if values is None:
        return wrong
    if cp_time is None:
        return values
    _fill(cp_time, values)
    return 0


def _states(kernel: Kernel) -> list[int]:
    [total] = [times for times in kernel.cpu_times() if times.cpu == -1]
    states = [0] * CPUSTATES
    states[CP_USER] = total.user_ns // _TICK
    states[CP_NICE] = total.nice_ns // _TICK
    states[CP_SYS] = total.system_ns // _TICK
    states[CP_INTR] = total.irq_ns // _TICK + total.softirq_ns // _TICK
    states[CP_IDLE] = total.idle_ns // _TICK + total.iowait_ns // _TICK
    return states


def _fill(array: MutableSequence[Any], values: Sequence[object]) -> int:
    for index, value in enumerate(values):
        if index < len(array):
            array[index] = value
        else:
            array.append(value)
    return len(values)
