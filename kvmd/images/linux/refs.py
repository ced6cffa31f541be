"""Addresses that a piece of machine code refers to, without a disassembler. Pure.

Every address that the code can mean is among them, and some that it doesn't mean: who asks must check what is there.

Source: Arm ARM (DDI 0487), chapter C6 (ADRP, ADD, LDR, STR and their like); Intel SDM volume 2 (displacements and
immediates of 32 bits, relative to the next instruction or sign-extended). Kernels are linked so that all their data can
be reached like that (arm64 4 GiB either way; x86-64 -mcmodel=kernel, the highest 2 GiB).
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from drgn import Architecture

_ALL = (1 << 64) - 1
# A displacement is followed by the instruction's immediate, if it has one: of 1, 2 or 4 bytes.
_TAILS = (4, 5, 6, 8)


def _signed(value: int, bits: int) -> int:
    return (value ^ 1 << bits - 1) - (1 << bits - 1)


def arm64(code: bytes, address: int) -> set[int]:
    """What ADRP and an ADD, load or store after it mean; a register keeps its page or sum until it gets another."""
    found: set[int] = set()
    known: dict[int, int] = {}  # by register
    for at, (word,) in enumerate(struct.iter_unpack("<I", code[: len(code) & -4])):
        target, source = word & 31, word >> 5 & 31
        distance = _signed(word >> 29 & 3 | (word >> 5 & 0x7FFFF) << 2, 21)
        if word & 0x9F000000 == 0x90000000:  # ADRP
            known[target] = (address + 4 * at & -4096) + (distance << 12) & _ALL
        elif word & 0x9F000000 == 0x10000000:  # ADR
            found.add(address + 4 * at + distance & _ALL)
        elif source in known and word & 0xFF800000 == 0x91000000:  # ADD, immediate
            known[target] = known[source] + ((word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)) & _ALL
            found.add(known[target])
        elif source in known and (offset := _offset(word)) is not None:
            found.add(known[source] + offset & _ALL)
    return found


def _offset(word: int) -> int | None:
    """The offset of an instruction that loads or stores at one."""
    if word & 0x3B000000 == 0x39000000:  # one register, unsigned offset; 16 bytes if opc says so of a vector
        wide = word & 1 << 26 and word >> 23 & 1 and not word >> 30
        return (word >> 10 & 0xFFF) << (4 if wide else word >> 30)
    if word & 0x3A000000 == 0x28000000:  # a pair
        return _signed(word >> 15 & 0x7F, 7) << (3 if word >> 31 else 2)
    return None


def x86(code: bytes, address: int) -> set[int]:
    """What any four bytes mean as a displacement, or as an address of the highest 2 GiB."""
    found: set[int] = set()
    for at in range(len(code) - 3):
        (value,) = struct.unpack_from("<i", code, at)
        if value < 0:
            found.add(value & _ALL)
        found.update(address + at + tail + value & _ALL for tail in _TAILS)
    return found


DECODERS: dict[Architecture, Callable[[bytes, int], set[int]]] = {
    Architecture.AARCH64: arm64,
    Architecture.X86_64: x86,
}
