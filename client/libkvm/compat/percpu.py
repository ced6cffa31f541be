"""FreeBSD's calls for per-CPU data, on Linux's: kvm_getpcpu(3) and its family."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Literal

from libkvm.compat.kd import Kvm, usable
from libkvm.compat.reading import kvm_read
from libkvm.errors import FaultError, KvmError, Reason, error
from libkvm.kernel import Kernel
from libkvm.memory import Buffer
from libkvm.records import Cpu

_U64 = 2**64
_BIG_ENDIAN = ("s390x",)


def kvm_getmaxcpu(kd: Kvm | None) -> int:
    """Answer one more than the highest CPU number that there can be: kvm_getmaxcpu(3); -1 on failure."""
    if (kd := usable(kd, "kvm_getmaxcpu")) is None:
        return -1
    count = kd.asked(Kernel.max_cpus)
    return -1 if count is None else count


def kvm_getncpus(kd: Kvm | None) -> int:
    """Answer how many CPUs are online: kvm_getncpus(3); -1 on failure."""
    if (kd := usable(kd, "kvm_getncpus")) is None:
        return -1
    cpus = kd.asked(Kernel.cpus)
    return -1 if cpus is None else sum(cpu.online for cpu in cpus)


def kvm_getpcpu(kd: Kvm | None, cpu: int) -> Cpu | Literal[-1] | None:
    """Answer what is known of a CPU: kvm_getpcpu(3).

    :return: a record; None if there can be no CPU of this number; -1 on failure, and for a negative number (EINVAL).
    """
    if (kd := usable(kd, "kvm_getpcpu")) is None:
        return -1
    if cpu < 0:
        kd.invalid("kvm_getpcpu")
        return -1
    cpus = kd.asked(Kernel.cpus)
    if cpus is None:
        return -1
    return next((each for each in cpus if each.number == cpu), None)


def kvm_dpcpu_setcpu(kd: Kvm | None, cpu: int) -> int:
    """Select the CPU whose own data later calls of kvm_nlist(3) give for per-CPU variables: kvm_dpcpu_setcpu(3).

    Before it, and unlike on FreeBSD, they give what :func:`kvm_read_zpcpu` and :func:`kvm_counter_u64_fetch` take: the
    variable's place in every CPU's area.

    :return: 0; -1 on failure, which leaves the selection as it was.
    """
    if (kd := usable(kd, "kvm_dpcpu_setcpu")) is None:
        return -1
    offset = _offset(kd, "kvm_dpcpu_setcpu", cpu)
    if offset is None:
        return -1
    kd.cpu_offset = offset
    return 0


def kvm_read_zpcpu(kd: Kvm | None, base: int, buf: Buffer, nbytes: int | None, cpu: int) -> int:
    """Read one CPU's own copy of a per-CPU variable into a writable buffer: kvm_read_zpcpu(3).

    :param base: the variable's value in kvm_nlist(3), before any :func:`kvm_dpcpu_setcpu`.
    :param nbytes: how many bytes; None: the buffer's size.
    :return: as :func:`libkvm.kvm_read`; -1 if there is no such CPU.
    """
    if (kd := usable(kd, "kvm_read_zpcpu")) is None:
        return -1
    offset = _offset(kd, "kvm_read_zpcpu", cpu)
    return -1 if offset is None else kvm_read(kd, base + offset, buf, nbytes)


def kvm_counter_u64_fetch(kd: Kvm | None, base: int) -> int:
    """Add a per-CPU counter of 64 bits up over all CPUs that there can be: kvm_counter_u64_fetch(3).

    :param base: as of :func:`kvm_read_zpcpu`.
    :return: the sum, modulo 2**64; -1 on failure, where FreeBSD's 0 could be a sum.
    """
    if (kd := usable(kd, "kvm_counter_u64_fetch")) is None:
        return -1
    try:
        places = [(base + offset) % _U64 for offset in _offsets(kd.kernel)]
        results = kd.kernel.readv([(place, 8) for place in places])
        for result in results:
            if result.error is not None:
                raise result.error
    except KvmError as failure:
        if kd.live and isinstance(failure, FaultError):
            kd.soft(f"kvm_counter_u64_fetch: {os.strerror(failure.errno)}", failure.errno)
        else:
            kd.hard(failure.text, failure.errno)
        return -1
    order: Literal["little", "big"] = "big" if kd.kernel.info.machine in _BIG_ENDIAN else "little"
    return sum(int.from_bytes(result.data, order) for result in results) % _U64


def _offsets(kernel: Kernel) -> Iterator[int]:
    for cpu in kernel.cpus():
        if cpu.offset is None:
            raise error(Reason.UNSUPPORTED, f"the image does not tell where the per-CPU data of CPU {cpu.number} are")
        yield cpu.offset


def _offset(kd: Kvm, call: str, cpu: int) -> int | None:
    """Answer where a CPU's own data lie, or leave the error."""
    if cpu < 0:
        kd.invalid(call)
        return None
    cpus = kd.asked(Kernel.cpus)
    if cpus is None:
        return None
    found = next((each for each in cpus if each.number == cpu), None)
    if found is not None and found.offset is not None:
        return found.offset
    if found is not None:
        kd.hard(f"{call}: init failed", errno.ENODATA)
    elif any(each.number > cpu for each in cpus):
        kd.hard(f"{call}: CPU {cpu} not found", errno.ENOENT)
    else:
        kd.hard(f"{call}: CPU {cpu} too big", errno.EINVAL)
    return None
