"""Per-CPU variables: BTF has them all, with their places in the section that each CPU has a copy of.

Source: pahole's btf_encoder.c (the DATASEC ``.data..percpu`` counts from the section's beginning, which is address 0 on
x86-64 up to 6.14); Linux include/asm-generic/percpu.h.
"""

from __future__ import annotations

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.objects.probe import Probe

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


def bases(probe: Probe, table: int, runqueues: int, references: set[int]) -> list[int]:
    """Where the section can begin, if ``table`` is __per_cpu_offset: each CPU's runqueue must then know its number.

    :param runqueues: where in the section ``runqueues`` lies.
    :param references: what code refers to that uses it.
    """
    candidates = {0} | {reference - runqueues & _ALL for reference in references}
    return [base for base in sorted(candidates) if _fits(probe, table, base + runqueues)]


def _fits(probe: Probe, table: int, runqueues: int) -> bool:
    try:
        mask = probe.word(probe.address("__cpu_possible_mask"))
        for cpu in (bit for bit in range(_CPUS) if mask >> bit & 1):
            queue = runqueues + probe.word(table + 8 * cpu) & _ALL
            idle = probe.member("struct rq", "idle", queue)
            if probe.member("struct rq", "cpu", queue) != cpu or (cpu == 0) != (idle == probe.address("init_task")):
                return False
    except KvmError as e:
        if e.reason is Reason.AMBIGUOUS:
            raise
        return False
    return bool(mask & 1)


def base(found: list[int]) -> int:
    """The one base of several that pass, or none.

    :raises KvmError: AMBIGUOUS, NO_SYMBOLS.
    """
    if len(found) > 1:
        raise error(Reason.AMBIGUOUS, "per-CPU variables could lie in several places; name a vmlinux as execfile")
    if not found:
        raise error(Reason.NO_SYMBOLS, "the image doesn't tell where per-CPU variables lie; name a vmlinux as execfile")
    return found[0]
