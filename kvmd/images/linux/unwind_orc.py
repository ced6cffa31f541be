"""Walks a stack of an x86-64 kernel from one set of registers, by ORC. Pure but for the reads it is given.

Source: Linux arch/x86/kernel/unwind_orc.c (unwind_next_frame) and arch/x86/include/asm/ptrace.h (struct pt_regs).

The kernel leaves some functions without rows, among them the one that every panic ends in (STACK_FRAME_NON_STANDARD of
__crash_kexec, kernel/kexec_core.c). There the stack is searched for an address that follows a direct call of the
function; what was found so is marked, and until a frame pointer is read from the stack again, it is believed only where
it leads to such an address, too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from kvmd.errors import KvmError
from kvmd.images.linux import orc
from kvmd.images.linux.memory import Read
from kvmd.images.linux.orc import Kind, Row
from kvmd.images.linux.symbols import KERNEL
from kvmd.images.linux.unwind import ALL, At, Function, Stop, Walk
from kvmd.v1 import stack_pb2

_SEARCHED = 128  # words
_CALL = 0xE8  # call rel32
_WORDS = struct.Struct("<21Q")
# Words of struct pt_regs: r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss.
_BP, _IP, _CS, _SP = 4, 16, 17, 19
_SAVED = {orc.R13: 2, orc.R10: 7, orc.DX: 12, orc.DI: 14}


def entered(words: tuple[int, ...]) -> At:
    """The place where registers were saved, which begin with those of struct pt_regs.

    :raises Stop: USER if that was in user space.
    """
    if words[_CS] & 3:
        raise Stop(stack_pb2.STACK_END_USER)
    return At(words[_IP], words[_SP], words[_BP], True, words[:21])


class OrcWalk(Walk):
    """One walk.

    :param row: finds the row of an instruction; None if no table has one.
    """

    def __init__(self, read: Read, row: Callable[[int], Row | None], function: Function, stack: range) -> None:
        super().__init__(read, stack)
        self._row, self._function = row, function

    def _caller(self, at: At) -> At:
        if at.pc and at.pc < KERNEL:
            raise Stop(stack_pb2.STACK_END_CORRUPT)
        row = self._row(at.code) if at.pc else orc.NULL_CALL
        if row is None or row.kind is Kind.NOTHING:
            return self._searched(at)
        if row.kind is Kind.BOTTOM:
            raise Stop(stack_pb2.STACK_END_BOTTOM)
        sp = self._previous_sp(row, at)
        if row.kind is Kind.CALL:
            found = At(self._word(sp - 8), sp, at.bp, sure=at.sure)
            if not at.sure and row.sp_reg in (orc.BP, orc.BP_INDIRECT) and not self._calls(found.pc, at):
                raise Stop(stack_pb2.STACK_END_NO_UNWIND)
        elif row.kind is Kind.REGS:
            found = entered(_WORDS.unpack(self._bytes(sp, _WORDS.size)))
        else:
            # What was saved before still tells the other registers.
            ip, cs, _, old_sp, _ = struct.unpack("<5Q", self._bytes(sp, 40))
            if cs & 3:
                raise Stop(stack_pb2.STACK_END_USER)
            found = At(ip, old_sp, at.saved[_BP] if at.saved else at.bp, True, at.saved)
        return self._with_bp(found, row, sp, at)

    def _searched(self, at: At) -> At:
        """The caller of a function that no row describes."""
        words = min(_SEARCHED, (self._stack.stop - at.sp) // 8) if at.sp in self._stack else 0
        data = self._bytes(at.sp, 8 * words) if words else b""
        for index, (word,) in enumerate(struct.iter_unpack("<Q", data), 1):
            if self._calls(word, at):
                return At(word, at.sp + 8 * index, at.bp, found=True, sure=False)
        raise Stop(stack_pb2.STACK_END_NO_UNWIND)

    def _calls(self, address: int, at: At) -> bool:
        """Whether an address follows a direct call of the function at a place."""
        function = self._function(at.code)
        if not function or not KERNEL <= address - 5 <= ALL - 8:
            return False
        try:
            code = self._read(address - 5, 5)
        except KvmError:
            return False
        return code[0] == _CALL and address + int.from_bytes(code[1:], "little", signed=True) == function

    def _previous_sp(self, row: Row, at: At) -> int:
        if row.sp_reg == orc.SP:
            return at.sp + row.sp_offset
        if row.sp_reg == orc.BP:
            return at.bp + row.sp_offset
        if row.sp_reg == orc.SP_INDIRECT:
            return self._word(at.sp) + row.sp_offset
        if row.sp_reg == orc.BP_INDIRECT:
            return self._word(at.bp + row.sp_offset)
        if row.sp_reg in _SAVED and at.saved:
            return at.saved[_SAVED[row.sp_reg]]
        raise Stop(stack_pb2.STACK_END_CORRUPT)

    def _with_bp(self, found: At, row: Row, sp: int, at: At) -> At:
        if row.bp_reg == orc.PREV_SP:
            return found._replace(bp=self._word(sp + row.bp_offset), sure=True)
        if row.bp_reg == orc.BP:
            return found._replace(bp=self._word(at.bp + row.bp_offset))
        if row.bp_reg != orc.UNDEFINED:
            raise Stop(stack_pb2.STACK_END_CORRUPT)
        return found
