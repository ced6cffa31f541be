"""The registers of CPUs that ran when a dump was made, from its NT_PRSTATUS notes.

A kernel that panics saves each CPU's note in memory of that CPU (Linux kernel/crash_core.c, kexec_core.c: the per-CPU
``crash_notes``), whatever the dump file has of them. A hypervisor that dumps writes one note for each CPU, in their
order, into the file alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import cached_property

from kvmd.errors import KvmError
from kvmd.images.linux import elf
from kvmd.images.linux.cpus import Cpus
from kvmd.images.linux.kernel import Kernel

_NT_PRSTATUS = 1
_HEAD = 12 + 8 + 112  # header, "CORE", what comes before pr_reg in struct elf_prstatus of 64-bit architectures
_TAIL = 8  # pr_fpvalid
_ALL = (1 << 64) - 1


class SavedRegisters:
    """The registers of one dump's CPUs.

    :param count: how many words pr_reg has on the architecture.
    """

    def __init__(self, kernel: Kernel, cpus: Cpus, count: int) -> None:
        self._kernel = kernel
        self._cpus = cpus
        self._order = kernel.memory.order
        self._words = struct.Struct(f"{self._order}112x{count}Q")
        self._note = _HEAD + 8 * count + _TAIL

    def _registers(self, notes: bytes) -> Iterator[tuple[int, ...]]:
        for name, kind, desc in elf.notes(notes, self._order):
            if name == b"CORE" and kind == _NT_PRSTATUS and len(desc) >= self._words.size:
                yield self._words.unpack_from(desc)

    def of(self, cpu: int) -> tuple[int, ...] | None:
        """A CPU's registers, which begin with those of struct pt_regs; None where nobody saved them."""
        return self._in_memory.get(cpu) if self._in_memory else self._in_file.get(cpu)

    @cached_property
    def _in_memory(self) -> dict[int, tuple[int, ...]]:
        found, read = self._kernel.builtin("crash_notes"), self._kernel.memory.kernel
        saved: dict[int, tuple[int, ...]] = {}
        if found is None:
            return saved
        offsets = self._cpus.offsets
        for cpu in self._cpus.possible:
            try:
                place = self._kernel.memory.number(found.value) + offsets[cpu] & _ALL
                registers = next(self._registers(read(place, self._note)), None)
            except KvmError:  # left out of the dump, or overwritten
                continue
            if registers is not None:
                saved[cpu] = registers
        return saved

    @cached_property
    def _in_file(self) -> dict[int, tuple[int, ...]]:
        return dict(zip(self._cpus.possible, self._registers(self._kernel.dump.layout.notes), strict=False))
