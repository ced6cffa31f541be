"""Property tests of the unwinder: whatever memory and tables hold, a walk ends, within its bounds, for a reason."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.errors import Reason, error
from kvmd.images.linux import orc
from kvmd.images.linux.orc import Kind, Row, Table
from kvmd.images.linux.unwind import MAX_FRAMES, At
from kvmd.images.linux.unwind_frames import FrameWalk, Shape
from kvmd.images.linux.unwind_orc import OrcWalk
from kvmd.v1 import stack_pb2

STACK = 0xFFFF_C900_0000_0000
CODE = 0xFFFF_FFFF_8100_0000
rows = st.one_of(
    st.none(),
    st.builds(
        Row,
        st.integers(0, 9),
        st.sampled_from([0, 8, 16, -8, 64, 0x7FFF, -0x8000, 1]),
        st.sampled_from([orc.UNDEFINED, orc.PREV_SP, orc.BP, orc.SP]),
        st.sampled_from([-16, 0, 8, 3]),
        st.sampled_from(list(Kind)),
    ),
)


class Memory:
    """Reads that give places on the stack, code, calls, rubbish, or fail."""

    def __init__(self, seed: int, faults: float) -> None:
        self.random = random.Random(seed)
        self.faults = faults
        self.reads = 0

    def read(self, address: int, length: int) -> bytes:
        assert 0 <= address <= (1 << 64) - length
        self.reads += 1
        if self.random.random() < self.faults:
            raise error(Reason.NOT_MAPPED, "gone", address=address)
        if length == 5:
            return b"\xe8" + self.random.randbytes(4)
        return b"".join(self._word() for _ in range(length // 8))

    def _word(self) -> bytes:
        place = self.random.choice([STACK + 8 * self.random.randrange(4096), CODE + self.random.randrange(9999), 0x10])
        return place.to_bytes(8, "little") if self.random.random() < 0.95 else self.random.randbytes(8)


@given(st.lists(rows, min_size=1, max_size=8), st.integers(0, 2**32), st.sampled_from([0.0, 0.02]))
@settings(deadline=None, max_examples=200)
def test_every_walk_ends(table: list[Row | None], seed: int, faults: float) -> None:
    memory = Memory(seed, faults)
    walk = OrcWalk(memory.read, lambda pc: table[pc % len(table)], lambda pc: CODE, range(STACK, STACK + (1 << 14)))
    frames = list(walk.frames(At(CODE, STACK + 64, STACK + 128, True)))
    assert 1 <= len(frames) <= MAX_FRAMES
    assert walk.end != stack_pb2.STACK_END_UNSPECIFIED
    assert (walk.error is None) == (walk.end != stack_pb2.STACK_END_FAULT)
    assert memory.reads <= 140 * MAX_FRAMES


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.02]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_every_walk_by_frame_records_ends(seed: int, faults: float, meta: bool) -> None:
    memory, shape = Memory(seed, faults), Shape(record=304, registers=336, meta=meta, top=0xFFFF << 48)
    walk = FrameWalk(memory.read, lambda pc: pc - pc % 256, shape, range(STACK, STACK + (1 << 14)))
    saved = tuple(STACK + 16 * number for number in range(34))
    frames = list(walk.frames(At(CODE, STACK + 64, STACK + 128, True, saved)))
    assert 1 <= len(frames) <= MAX_FRAMES
    assert walk.end != stack_pb2.STACK_END_UNSPECIFIED
    assert (walk.error is None) == (walk.end != stack_pb2.STACK_END_FAULT)
    assert memory.reads <= 4 * MAX_FRAMES


@given(st.binary(min_size=6 * 40, max_size=6 * 40), st.integers(0, 2**64 - 1), st.integers(0, 2**32))
@settings(deadline=None, max_examples=150)
def test_every_table_answers(data: bytes, pc: int, count: int) -> None:
    """Of any length that it claims to have."""
    reads = []

    def read(address: int, length: int) -> bytes:
        reads.append(address)
        at = address % 200
        return data[at : at + length]

    tables = orc.Orc.__new__(orc.Orc)
    tables._read, tables._size, tables._known = read, 6, {}
    tables._bits = {"sp_offset": (0, 16), "bp_offset": (16, 16), "sp_reg": (32, 4), "bp_reg": (36, 4), "type": (40, 3)}
    tables.__dict__["_registers"] = {number: number for number in range(10)}
    row = tables.find(Table(CODE, CODE + 4 * count, count), pc)
    assert row is None or (row.kind in Kind and -0x8000 <= row.sp_offset < 0x8000)
    assert len(reads) < 80
