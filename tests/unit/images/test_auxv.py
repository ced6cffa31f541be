"""What is taken from a saved auxiliary vector, whatever it holds; how many witnesses convince."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.auxv import _tokens
from kvmd.images.linux.order import BIG, LITTLE
from kvmd.images.linux.swap.evidence import weigh

RANDOM, VDSO = (25, 0x7FFE00001239), (33, 0x7FFE000F0000)


def vector(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in pairs)


def test_the_two_that_are_drawn_by_lot() -> None:
    saved = vector(VDSO, (16, 0xF8BFBFF), RANDOM, (0, 0), RANDOM)
    assert _tokens(saved, LITTLE) == [vector(VDSO), vector(RANDOM)]
    assert _tokens(vector((25, 0), (0, 0)), LITTLE) == []
    assert _tokens(struct.pack("<8I", 33, 0xF7FC0000, 25, 0xFFFD0001, 0, 0, 0, 0), LITTLE) == []  # a program of 32 bits


def test_those_of_s390x() -> None:
    told = struct.pack(">4Q", *RANDOM, 0, 0)
    assert _tokens(told, BIG) == [told[:16]]
    assert _tokens(told, LITTLE) == []


@given(st.binary(max_size=400))
def test_any_bytes(saved: bytes) -> None:
    assert all(token in saved and len(token) == 16 for token in _tokens(saved, LITTLE))


def doubtful(*numbers: int) -> dict[int, Any]:
    known = SimpleNamespace(label="swap area 0 (/dev/vda)")
    return {number: (known, SimpleNamespace(store=SimpleNamespace(name="swap.img"))) for number in numbers}


@pytest.mark.parametrize(("for_it", "against", "good"), [(1, 0, True), (10, 1, True), (9, 1, False), (0, 1, False)])
def test_witnesses(for_it: int, against: int, good: bool) -> None:
    told = [(0, True)] * for_it + [(0, False)] * against
    if good:
        assert weigh(told, doubtful(0, 1)) == [1]
        return
    with pytest.raises(KvmError, match=f"{against} of {for_it + against} processes'") as caught:
        weigh(told, doubtful(0, 1))
    assert caught.value.reason is Reason.SWAP_FOREIGN


def test_it_stops_when_it_knows() -> None:
    told = iter([(0, True)] * 100)
    assert weigh(told, doubtful(0)) == []
    assert len(list(told)) == 36
