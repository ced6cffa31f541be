"""Damaged kallsyms tables: whatever they hold, the answer is none or a list, in bounded time.

``KVMD_FUZZ_INPUTS`` says how many inputs; ``tests/fuzz/long`` takes a million.
"""

from __future__ import annotations

import os
import random
import sys
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from kallsyms import LAYOUTS, TEXT, Layout, Made, made, symbols
from kvmd.images.linux.scan.kallsyms import parse
from kvmd.images.linux.scan.names import DIGITS

COUNT = int(os.environ.get("KVMD_FUZZ_INPUTS", "2000"))
AT = TEXT + (8 << 20)
LONGEST = 2.0  # seconds for one input
TABLES: list[tuple[Layout, Made]] = [(layout, made(layout, symbols(1100, layout))) for layout in LAYOUTS.values()]
INTERESTING = (b"\0", b"\xff", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", bytes(64), b"\xff" * 64)


def check(data: bytes, *, index: bool = True) -> int:
    """Look for tables; give how many there are.

    :param index: whether drgn's is made, too, which takes longer than all the rest.
    """
    place = data.find(DIGITS)
    if place < 0:
        return 0
    found = list(parse(data, place, AT))
    for one in found:
        assert len(one.values) == len(one.names) <= 1 << 20
        assert one.values == sorted(one.values)
        assert all(0 <= value < 1 << 64 for value in (one.values[0], one.values[-1]))
        assert not index or len(list(one.index()(None, None, None, False))) == len(one.names)  # type: ignore[arg-type]
    return len(found)


def damaged(rng: random.Random) -> bytes:
    """Tables with a few bytes changed, likeliest where the structure is."""
    _, tables = rng.choice(TABLES)
    data = bytearray(tables.data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        label = rng.choice([*tables.at])
        at = tables.at[label] + rng.choice((0, rng.randrange(16), rng.randrange(4096)))
        piece = rng.choice(INTERESTING) if rng.random() < 0.5 else rng.randbytes(rng.choice((1, 2, 4, 8)))
        match rng.randrange(8):
            case 0:
                del data[at : at + len(piece)]
            case 1:
                data[at:at] = piece
            case 2:
                del data[at:]
            case _:
                data[at : at + len(piece)] = piece
    return bytes(data)


def test_damaged_tables() -> None:
    rng = random.Random(int(os.environ.get("KVMD_FUZZ_SEED", "1")))
    slowest, whole = 0.0, 0
    for number in range(COUNT):
        data = damaged(rng)
        began = time.process_time()
        whole += bool(check(data, index=number % 100 == 0))
        slowest = max(slowest, time.process_time() - began)
    sys.stdout.write(f"kallsyms: {COUNT} inputs, {whole} tables, slowest {slowest:.3f} s\n")
    assert slowest < LONGEST
    assert 0 < whole < COUNT  # some damage is where nothing depends on it, some is not


@given(st.binary(max_size=3000), st.binary(max_size=3000))
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_around_digits(before: bytes, after: bytes) -> None:
    check(before + DIGITS + b"\0" + after)


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\0", b"")), min_size=256, max_size=256), st.binary())
@settings(deadline=None, max_examples=100)
def test_arbitrary_tokens(strings: list[bytes], more: bytes) -> None:
    strings[48:58] = [b"%c" % digit for digit in b"0123456789"]
    table = b"".join(string + b"\0" for string in strings)
    index = b"".join(sum(len(string) + 1 for string in strings[:i]).to_bytes(2, "little") for i in range(len(strings)))
    pad = -len(table) % 8
    data = more + bytes(-len(more) % 8) + table + bytes(pad) + index + more
    assert check(data) == 0  # no names before
