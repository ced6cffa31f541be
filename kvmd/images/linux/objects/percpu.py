"""Per-CPU variables: BTF has them all, with their places in the section that each CPU has a copy of.

Source: pahole's btf_encoder.c (the DATASEC ``.data..percpu`` counts from the section's beginning, which is address 0 on
x86-64 up to 6.14); Linux include/asm-generic/percpu.h.
"""

from __future__ import annotations

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.objects.probe import Probe
from kvmd.images.linux.symbols import KERNEL

_SECTION = ".data..percpu"
_CPUS = 64  # of which the check looks at
_ALL = (1 << 64) - 1
Variable = tuple[int, int, bool]
"""Offset in the section, size, whether it is global."""


def variables(btf: Btf) -> dict[str, Variable]:
    """The per-CPU variables by name.

    :raises KvmError: CORRUPT_DATA.
    """
    found: dict[str, Variable] = {}
    section = btf.find_section(_SECTION)
    for type_id, offset, size in btf.variables(section) if section is not None else ():
        record = btf.record(type_id)
        if record.kind is Kind.VAR:
            found.setdefault(record.name, (offset, size, bool(btf.word(record))))
    return found


def queues(probe: Probe, table: int, runqueues: int, references: set[int]) -> dict[int, int]:
    """Where the section can begin, if ``table`` is __per_cpu_offset, and which CPUs, as bits, have a runqueue then.

    :param runqueues: where in the section ``runqueues`` lies.
    :param references: what code refers to that uses it.
    """
    try:
        offsets = probe.words(table, _CPUS)
    except KvmError:
        return {}
    found: dict[int, int] = {}
    for base in sorted({0} | {reference - runqueues & _ALL for reference in references}):
        at = base + runqueues
        if _is_queue(probe, at + offsets[0] & _ALL, 0):
            found[base] = sum(1 << cpu for cpu in range(_CPUS) if _is_queue(probe, at + offsets[cpu] & _ALL, cpu))
    return found


def _is_queue(probe: Probe, at: int, cpu: int) -> bool:
    """Whether a CPU's runqueue is here: it knows its number and its idle task, of which init_task is the first."""
    try:
        if probe.member("struct rq", "cpu", at) != cpu:
            return False
        idle = probe.member("struct rq", "idle", at)
        return bool(idle >= KERNEL and idle % 8 == 0 and (idle == probe.address("init_task")) == (cpu == 0))
    except KvmError as e:
        if e.reason is Reason.AMBIGUOUS:
            raise
        return False


def base(found: list[int]) -> int:
    """The one base of several that pass, or none.

    :raises KvmError: AMBIGUOUS, NO_SYMBOLS.
    """
    if len(found) > 1:
        raise error(Reason.AMBIGUOUS, "per-CPU variables could lie in several places; name a vmlinux as execfile")
    if not found:
        raise error(Reason.NO_SYMBOLS, "the image doesn't tell where per-CPU variables lie; name a vmlinux as execfile")
    return found[0]
