"""Walks a stack of an arm64 kernel by its frame records, which all of its functions keep but the smallest.

Source: Linux arch/arm64/kernel/stacktrace.c (unwind_next), entry.S (kernel_entry makes a record in struct pt_regs of
what was interrupted, and one of zeroes where user space or nothing was), include/asm/stacktrace/frame.h (since 6.13
those two are told apart by a third word); AAPCS64, the frame record: the caller's record, then the return address.

A function that was interrupted may not have made its record yet, or none at all. Its code tells: as long as nothing
before the instruction sets the frame pointer, the return address is still in its register.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvmd.errors import KvmError
from kvmd.images.linux.memory import Read
from kvmd.images.linux.symbols import KERNEL
from kvmd.images.linux.unwind import ALL, At, Function, Stop, Walk
from kvmd.v1 import stack_pb2

REGISTERS = 34
"""Words of struct user_pt_regs: x0 to x30, sp, pc, pstate; struct pt_regs begins with them."""
_FP, _LR, _SP, _PC, _PSTATE = 29, 30, 31, 32, 33
_MODE = 15  # PSR_MODE_MASK without the bit of 32-bit programs: 0 is user space
_META_FINAL, _META_REGISTERS = 1, 2  # enum of struct frame_record_meta
_SET_FP, _SET_FP_MASK = 0x910003FD, 0xFFC003FF  # add x29, sp, #imm
_ENDS = (0xD65F03C0, 0xD50323BF, 0xD65F0BFF)  # ret, autiasp, retaa
_LONGEST = 1 << 14  # bytes of a function


class Shape(NamedTuple):
    """What a walk must know of the kernel.

    :ivar record: where in struct pt_regs its frame record lies.
    :ivar registers: the size of struct pt_regs.
    :ivar meta: whether such records have a third word.
    :ivar top: bits that every kernel address has, which pointer authentication uses for its code.
    """

    record: int
    registers: int
    meta: bool
    top: int


class FrameWalk(Walk):
    """One walk."""

    def __init__(self, read: Read, function: Function, shape: Shape, stack: range) -> None:
        super().__init__(read, stack)
        self._function, self._shape = function, shape
        self._last = stack.stop - shape.registers + shape.record

    def _caller(self, at: At) -> At:
        if at.pc < KERNEL:
            raise Stop(stack_pb2.STACK_END_CORRUPT)
        if at.saved and self._in_register(at):
            # The caller's stack pointer isn't known, but it is none that was seen.
            return At(self._plain(at.saved[_LR]), at.sp + 1, at.bp)
        if not at.bp:
            raise Stop(stack_pb2.STACK_END_NO_UNWIND)
        following, pc = struct.unpack("<2Q", self._bytes(at.bp, 16))
        if not following and not pc:
            return self._edge(at)
        pc = self._plain(pc)
        registers = self._interrupted(at.bp, pc, following)
        return entered(registers) if registers else At(pc, at.bp + 16, following)

    def _edge(self, at: At) -> At:
        """A record of zeroes: the kernel was entered here."""
        if self._shape.meta and self._word(at.bp + 16) == _META_REGISTERS:
            return entered(self._registers(at.bp))
        if at.bp != self._last:
            raise Stop(stack_pb2.STACK_END_NO_UNWIND)
        registers = self._registers(at.bp)
        # Threads that never were in user space have its mode in no register, or no registers at all.
        user = not registers[_PSTATE] & _MODE and any(registers)
        raise Stop(stack_pb2.STACK_END_USER if user else stack_pb2.STACK_END_BOTTOM)

    def _interrupted(self, record: int, pc: int, fp: int) -> tuple[int, ...] | None:
        """The registers around a record, if it is the one of an exception in the kernel."""
        try:
            registers = self._registers(record)
        except (Stop, KvmError):
            return None
        return registers if (registers[_PC], registers[_FP]) == (pc, fp) and registers[_PSTATE] & _MODE else None

    def _registers(self, record: int) -> tuple[int, ...]:
        return struct.unpack(f"<{REGISTERS}Q", self._bytes(record - self._shape.record, 8 * REGISTERS))

    def _in_register(self, at: At) -> bool:
        """Whether the function that was interrupted still has its return address in the register."""
        start = self._function(at.pc)
        if not start or not 0 <= at.pc - start < _LONGEST:
            return False
        words = [word for (word,) in struct.iter_unpack("<I", self._bytes(start & -8, (at.pc - start | 7) + 9 & -8))]
        now = (at.pc - (start & -8)) // 4
        before = words[(start & 7) // 4 : now]
        return words[now] in _ENDS or not any(word & _SET_FP_MASK == _SET_FP for word in before)

    def _plain(self, address: int) -> int:
        """A return address without its authentication code."""
        return address | self._shape.top if address >> 55 & 1 else address


def entered(registers: tuple[int, ...]) -> At:
    """The place where registers were saved.

    :raises Stop: USER if that was in user space.
    """
    if not registers[_PSTATE] & _MODE:
        raise Stop(stack_pb2.STACK_END_USER)
    return At(registers[_PC], registers[_SP] & ALL, registers[_FP], True, registers[:REGISTERS])
