"""ORC: what the kernel keeps to unwind its own stacks, one row for each run of instructions (x86-64).

Source: Linux arch/x86/include/asm/orc_types.h and arch/x86/kernel/unwind_orc.c (since 4.14). A table is two arrays:
where each row's code begins, as a distance from the number itself, ascending; and the rows. The layout of a row's bit
fields changed in 6.3 and 6.4; it is taken from the kernel's own types, and what ``type`` counts follows from the
layout. The numbers of registers changed between 6.12 and 7.2: which are meant is told by a function's first
instruction, where the caller's stack pointer is always the stack pointer plus 8.
"""

from __future__ import annotations

from enum import Enum
from functools import cached_property
from typing import NamedTuple

from drgn import Program, sizeof

from kvmd.errors import Reason, error
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.memory import Read

UNDEFINED, PREV_SP, DX, DI, BP, SP, R10, R13, BP_INDIRECT, SP_INDIRECT = range(10)
"""ORC_REG_*, as numbered up to 6.12: what an offset counts from."""
# The same by their numbers in 7.2, as far as its tables have them.
_RENUMBERED = {0: UNDEFINED, 2: DX, 3: SP, 4: BP, 6: R10, 7: R13, 8: PREV_SP, 9: SP_INDIRECT, 10: BP_INDIRECT}
_NUMBERINGS = {SP: {number: number for number in range(10)}, 3: _RENUMBERED}
MAX_ROWS = 1 << 24
_ALL = (1 << 64) - 1
_REMEMBERED = 1 << 14


class Kind(Enum):
    """What lies on the stack above a function's own part."""

    NOTHING = "nothing is known"
    BOTTOM = "nothing: the stack ends"
    CALL = "a return address"
    REGS = "all registers"
    PARTIAL = "the five words that an interrupt pushes"


# ORC_TYPE_* since 6.4, and before, when rows said UNDEFINED and ``end`` for the first two.
_KINDS = (Kind.NOTHING, Kind.BOTTOM, Kind.CALL, Kind.REGS, Kind.PARTIAL)
_OLD_KINDS = (Kind.CALL, Kind.REGS, Kind.PARTIAL)


class Row(NamedTuple):
    """How to find the caller's stack pointer and frame pointer."""

    sp_reg: int
    sp_offset: int
    bp_reg: int
    bp_offset: int
    kind: Kind


NULL_CALL = Row(SP, 8, UNDEFINED, 0, Kind.CALL)
"""Of a call through a pointer that was NULL: nothing but the return address was pushed (orc_find)."""


class Table(NamedTuple):
    """Where a table lies, and how many rows it has."""

    starts: int
    rows: int
    length: int


class Orc:
    """Reads rows of tables; what code does never changes as long as it is there, so rows are remembered.

    :param read: reads kernel memory exactly.
    :param kernel: the kernel's own table.
    :param entry: the address of one of its C functions.
    :raises KvmError: NO_TYPES for a kernel without ORC.
    """

    def __init__(self, prog: Program, read: Read, kernel: Table, entry: int) -> None:
        self._read = read
        self._sample = kernel, entry
        with guarded("struct orc_entry"):
            kind = prog.type("struct orc_entry")
            self._size = sizeof(kind)
            self._bits: dict[str, tuple[int, int]] = {
                str(member.name): (member.bit_offset, member.bit_field_size or 8 * sizeof(member.type))
                for member in kind.members
            }
        self._known: dict[tuple[Table, int], Row | None] = {}

    def find(self, table: Table, pc: int) -> Row | None:
        """The row of an instruction; None if it lies before the first.

        :raises KvmError: UNSUPPORTED for an unknown numbering of registers; the fault of a page of the table.
        """
        key = (table, pc)
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            word = self._search(table, pc)
            self._known[key] = None if word is None else self._row(word)
        return self._known[key]

    @cached_property
    def _registers(self) -> dict[int, int]:
        """What the numbers of registers mean."""
        word = self._search(*self._sample)
        found = _NUMBERINGS.get(self._field(word, "sp_reg")) if word is not None else None
        if found is None or self._field(word or 0, "sp_offset") != 8:
            message = "the kernel's ORC tables are blank, or number registers in a way that is not known"
            raise error(Reason.UNSUPPORTED, message)
        return found

    def _search(self, table: Table, pc: int) -> int | None:
        low, high = 0, min(table.length, MAX_ROWS)
        while low < high:
            middle = (low + high) // 2
            place = table.starts + 4 * middle
            start = place + int.from_bytes(self._read(place & _ALL, 4), "little", signed=True)
            if start <= pc:
                low = middle + 1
            else:
                high = middle
        if not low:
            return None
        return int.from_bytes(self._read(table.rows + self._size * (low - 1) & _ALL, self._size), "little")

    def _field(self, word: int, name: str) -> int:
        offset, size = self._bits.get(name, (0, 0))
        return word >> offset & ~(-1 << size)

    def _row(self, word: int) -> Row:
        kinds = _OLD_KINDS if self._bits.get("type", (0, 0))[1] == 2 else _KINDS
        kind = kinds[number] if (number := self._field(word, "type")) < len(kinds) else Kind.NOTHING
        if kinds is _OLD_KINDS and self._field(word, "sp_reg") == UNDEFINED:
            kind = Kind.BOTTOM if self._field(word, "end") or "end" not in self._bits else Kind.NOTHING
        sp_reg, bp_reg = (self._registers.get(self._field(word, name), -1) for name in ("sp_reg", "bp_reg"))
        if sp_reg < 0 or bp_reg < 0:
            kind = Kind.NOTHING
        sp_offset, bp_offset = ((self._field(word, name) ^ 0x8000) - 0x8000 for name in ("sp_offset", "bp_offset"))
        return Row(sp_reg, sp_offset, bp_reg, bp_offset, kind)
