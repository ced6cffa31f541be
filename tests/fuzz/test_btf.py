"""Damaged BTF: whatever it holds, the answer is an error that says so, or types; in bounded time.

``KVMD_FUZZ_INPUTS`` says how many inputs; ``tests/fuzz/long`` takes a million.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from collections import Counter

from drgn import Architecture, Platform, Program

from btf import Builder
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.types import Types

from .test_images import use

COUNT = int(os.environ.get("KVMD_FUZZ_INPUTS", "2000"))
LONGEST = 2.0  # seconds for one input
HEADER = 24
X86_64 = Platform(Architecture.X86_64)
IDS = (0, 1, 2, 3, 5, 8, 13, 21, 30, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
CONSTANTS = ["RUNNING", "LARGE", "LIVE"]
NAMES = ["task_struct", "list_head", "pid", "refcount", "int"]


def whole() -> Builder:
    """Every kind at least once, as compilers write them."""
    b = Builder()
    integer, char = b.integer("int", 4, 1), b.integer("char", 1)
    pointer = b.add(2, value=integer)
    array = b.add(3, extra=(char, integer, 16))
    head = b.compound("list_head", 16, [("next", 6, 0), ("prev", 6, 64)])
    b.add(2, value=head)
    inner = b.compound("", 8, [("a", integer, 0), ("b", integer, 32)], kind=5)
    members = [("pid", integer, 0), ("", inner, 64), ("comm", array, 128), ("flag", 1, 3 << 24)]
    b.compound("task_struct", 64, members, flag=1)
    b.enum("state", [("RUNNING", 0), ("STOPPED", -1)], flag=1)
    b.enum("wide", [("LARGE", 1 << 40)], wide=True)
    b.add(7, "task_struct"), b.add(7, "absent", flag=1)
    types = [b.add(kind, name, pointer) for kind, name in ((8, "refcount"), (9, ""), (10, ""), (11, ""), (18, "user"))]
    proto = b.add(13, value=integer, extra=(b.name("x"), types[0], 0, 0), vlen=2)
    b.add(12, "main", proto)
    variable = b.add(14, "current", types[1], (1,))
    b.add(15, ".data..percpu", 8, (variable, 0, 8), vlen=1)
    b.add(16, "double", 8)
    b.add(17, "tag", head, (0xFFFFFFFF,))
    return b


BASE = whole()
SPLIT = Builder(BASE)
SPLIT.compound("module_struct", 24, [("list", 5, 0), ("pid", 1, 128)])
SPLIT.enum("module_state", [("LIVE", 0)])
BLOBS = (BASE.bytes(), SPLIT.bytes())


def damaged(rng: random.Random, blob: bytes) -> bytes:
    """A blob with a few words or bytes changed."""
    data = bytearray(blob)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(0, len(data), 4) if rng.random() < 0.8 else rng.randrange(len(data))
        match rng.randrange(20):
            case 0:
                del data[at : at + 4]
            case 1:
                data[at:at] = rng.randbytes(4)
            case 2:
                del data[at:]
            case 3 | 4 | 5:  # a whole type, or what may be one
                info = rng.randrange(24) << 24 | rng.randrange(4)
                data[at : at + 12] = struct.pack("<3I", rng.choice(IDS), info, rng.choice(IDS))
            case 6 | 7 | 8 | 9 | 10 | 11:
                data[at : at + 4] = rng.choice(IDS).to_bytes(4, "little")
            case _:
                data[at : at + 1] = rng.randbytes(1)
        if not data:
            break
    return bytes(data)


def check(base: bytes, split: bytes) -> str:
    """Parse both and look at all that they give; how that went."""
    try:
        kernel = Btf(base)
        module = Btf(split, kernel)
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
        return "refused"
    prog = Program(X86_64)
    types = Types(prog, kernel)
    use(types)
    use(Types(prog, module, types))
    try:
        for name in NAMES:
            for blob in (kernel, module):
                found = blob.find(name, *Kind)
                assert found is None or blob.record(found).name == name
        for blob in (kernel, module):
            for name in CONSTANTS:
                found = blob.constant(name)
                assert found is None or name in dict(blob.enumerators(blob.record(found)))
            assert all(0 < number < len(blob) for _, number in blob.names())
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
        return "partly"
    return "read"


def test_damaged_types() -> None:
    assert check(*BLOBS) == "read"
    rng = random.Random(int(os.environ.get("KVMD_FUZZ_SEED", "1")))
    slowest, how = 0.0, Counter[str]()
    for number in range(COUNT):
        base = damaged(rng, BLOBS[0]) if number % 4 else BLOBS[0]
        split = damaged(rng, BLOBS[1]) if number % 4 < 2 else BLOBS[1]
        began = time.process_time()
        how[check(base, split)] += 1
        slowest = max(slowest, time.process_time() - began)
    sys.stdout.write(f"BTF: {COUNT} inputs, {dict(how)}, slowest {slowest:.3f} s\n")
    assert slowest < LONGEST
    assert min(how["refused"], how["partly"], how["read"]) > 0
