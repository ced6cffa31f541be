"""What machine code refers to; the words and bytes are what GNU as makes of the instructions beside them."""

from __future__ import annotations

import random
import struct

import pytest
from drgn import Architecture
from hypothesis import given
from hypothesis import strategies as st

from kvmd.images.linux.refs import DECODERS, arm64, x86

AT = 0xFFFF_8000_0801_0000
DATA = AT + 0x12_3000  # ADRP_X0's page


def adrp(register: int, pages: int) -> int:
    return 0x9000_0000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | register


def code(*words: int) -> bytes:
    return struct.pack(f"<{len(words)}I", *words)


PAGE = adrp(0, 0x123)
ADD = 0x9119E000  # add x0, x0, #0x678
OBJECT = DATA + 0x678


@pytest.mark.parametrize(
    ("word", "refers"),
    [
        (0x9119E000, 0x678),  # add x0, x0, #0x678
        (0x91400404, 0x1000),  # add x4, x0, #1, lsl #12
        (0xB9400801, 8),  # ldr w1, [x0, #8]
        (0xF9000C01, 0x18),  # str x1, [x0, #24]
        (0x3DC00801, 0x20),  # ldr q1, [x0, #32]
        (0xA97F0C02, -0x10),  # ldp x2, x3, [x0, #-16]
        (0x29008801, 4),  # stp w1, w2, [x0, #4]
        (0x39400C06, 3),  # ldrb w6, [x0, #3]
    ],
)
def test_arm64_forms(word: int, refers: int) -> None:
    assert arm64(code(PAGE, word), AT) == {DATA + refers}


def test_arm64_a_register_keeps_its_sum() -> None:
    """adrp x0; add x0, x0, #0x678; ldr w1, [x0, #8]; then x0 is another page."""
    assert arm64(code(PAGE, ADD, 0xB9400801), AT) == {OBJECT, OBJECT + 8}
    later = arm64(code(PAGE, ADD, adrp(0, -1), 0xB9400801), AT)
    assert later == {OBJECT, AT - 0x1000 + 8}


def test_arm64_other_registers_mean_nothing() -> None:
    assert arm64(code(adrp(7, 0x123), ADD, 0xB9400801, 0xD65F03C0), AT) == set()


def test_arm64_adr() -> None:
    assert arm64(code(0x10000125), AT) == {AT + 0x24}  # adr x5, 36 bytes on


@given(st.integers(-(1 << 20), (1 << 20) - 1), st.integers(0, 4095), st.integers(0, 1 << 40), st.integers(0, 30))
def test_arm64_any_distance(pages: int, inside: int, page: int, register: int) -> None:
    start = 0xFFFF_0000_0000_0000 + page * 4
    add = 0x91000000 | inside << 10 | register << 5 | register
    assert arm64(code(adrp(register, pages), add), start) == {(start & -4096) + (pages << 12) + inside & (1 << 64) - 1}


@pytest.mark.parametrize(
    ("data", "end", "refers"),
    [
        ("48 8b 05 00 10 00 00", 7, 0x1000),  # mov 0x1000(%rip), %rax
        ("80 3d 00 20 00 00 01", 7, 0x2000),  # cmpb $1, 0x2000(%rip)
        ("66 c7 05 00 30 00 00 01 00", 9, 0x3000),  # movw $1, 0x3000(%rip)
        ("c7 05 34 12 00 00 01 00 00 00", 10, 0x1234),  # movl $1, 0x1234(%rip)
        ("48 8d 35 00 40 ff ff", 7, -0xC000),  # lea -0xc000(%rip), %rsi
    ],
)
def test_x86_relative(data: str, end: int, refers: int) -> None:
    start = 0xFFFF_FFFF_8100_0000
    assert start + end + refers in x86(b"\x90\x90" + bytes.fromhex(data) + b"\xc3", start - 2)


@pytest.mark.parametrize("data", ["48 c7 c7 78 56 34 82", "48 8b 14 c5 78 56 34 82"])
def test_x86_absolute(data: str) -> None:
    """As in mov $-0x7dcba988, %rdi and mov -0x7dcba988(,%rax,8), %rdx."""
    assert 0xFFFF_FFFF_8234_5678 in x86(bytes.fromhex(data), 0xFFFF_FFFF_8100_0000)


@pytest.mark.parametrize("architecture", DECODERS)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 1 << 14])
def test_any_bytes_give_addresses(architecture: Architecture, length: int) -> None:
    data = random.Random(length).randbytes(length)
    found = DECODERS[architecture](data, (1 << 64) - 4096)
    assert len(found) <= 5 * length
    assert all(0 <= at < 1 << 64 for at in found)
