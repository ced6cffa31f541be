"""ELF cores made by hand and cut ones."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from drgn import FaultError
from hypothesis import given
from hypothesis import strategies as st

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.elf import PT_LOAD, Segment
from kvmd.images.linux.elfcore import ElfLayout, _flatten

INFO = b"OSRELEASE=1.2.3\nPAGESIZE=4096\n"


class Bytes:
    """A source of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]


def note(name: bytes = b"VMCOREINFO\0", text: bytes = INFO) -> bytes:
    pad = -len(name) % 4
    return struct.pack("<III", len(name), len(text), 0) + name + b"\0" * pad + text + b"\0" * (-len(text) % 4)


def core(loads: list[tuple[int, int, bytes]], notes: bytes | None = None, **fields: int) -> bytes:
    """An ELF core of (physical address, memory size, data) segments."""
    text = note() if notes is None else notes
    count = len(loads) + 1
    at = 64 + 56 * count
    rows = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(text), 0, 0)]
    body = text
    for address, size, data in loads:
        rows.append(struct.pack("<IIQQQQQQ", 1, 0, at + len(body), 0, address, len(data), size, 0))
        body += data
    head = {"type": 4, "machine": 62, "phoff": 64, "phentsize": 56, "phnum": count} | fields
    ident = b"\x7fELF" + bytes([head.get("klass", 2), head.get("order", 1), 1]) + b"\0" * 9
    words = (head["type"], head["machine"], 1, 0, head["phoff"], head.get("shoff", 0), 0, 64, head["phentsize"])
    return ident + struct.pack("<HHIQQQIHHHHHH", *words, head["phnum"], 64, 0, 0) + b"".join(rows) + body


def big_endian_core(loads: list[tuple[int, bytes]], info: bytes, machine: int = 22) -> bytes:
    """An ELF core, as s390x has it, of (physical address, data) segments; without VMCOREINFO if that is empty."""
    text = b"VMCOREINFO\0\0" + info + bytes(-len(info) % 4)
    notes = struct.pack(">III", 11, len(info), 0) + text if info else b""
    at = 64 + 56 * (len(loads) + 1)
    rows, body = [struct.pack(">IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 0)], notes
    for address, data in loads:
        rows.append(struct.pack(">IIQQQQQQ", 1, 0, at + len(body), 0, address, len(data), len(data), 0))
        body += data
    ident = b"\x7fELF\2\2\1" + bytes(9)
    head = struct.pack(">HHIQQQIHHHHHH", 4, machine, 1, 0, 64, 0, 0, 64, 56, len(rows), 64, 0, 0)
    return ident + head + b"".join(rows) + body


def reason(data: bytes) -> Reason:
    with pytest.raises(KvmError) as caught:
        ElfLayout(Bytes(data))
    return caught.value.reason


PAGE = b"x" * 4096


def test_memory_and_its_holes() -> None:
    layout = ElfLayout(Bytes(core([(0x1000, 0x3000, PAGE), (0x8000, 0x1000, b"y" * 4096)])))
    assert layout.read(0x1FF0, 16, 0, True) == b"x" * 16
    assert [layout.trouble(a) for a in (0, 0x1000, 0x2000, 0x3000, 0x4000, 0x8000, 0x9000)] == [
        *(Reason.BEYOND_DUMP, None, Reason.EXCLUDED, Reason.EXCLUDED, Reason.BEYOND_DUMP, None, Reason.BEYOND_DUMP),
    ]
    with pytest.raises(FaultError) as caught:
        layout.read(0x1FF0, 32, 0, True)
    assert caught.value.address == 0x2000
    assert layout.vmcoreinfo == INFO


def test_a_read_runs_over_segments() -> None:
    layout = ElfLayout(Bytes(core([(0x2000, 0x1000, b"y" * 4096), (0x1000, 0x1000, PAGE)])))
    assert layout.read(0x1FFE, 4, 0, True) == b"xxyy"


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (core([(0, 4096, PAGE)], type=2), Reason.UNSUPPORTED_FORMAT),
        (core([(0, 4096, PAGE)], klass=1), Reason.UNSUPPORTED_FORMAT),
        (core([(0, 4096, PAGE)], order=2), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)], klass=7), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)], phentsize=0), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)], phnum=0xFFFE), Reason.TRUNCATED_IMAGE),
        (core([(0, 4096, PAGE)], phnum=0xFFFF), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)], phnum=0xFFFF, shoff=1 << 40), Reason.TRUNCATED_IMAGE),
        (core([(0, 4096, PAGE)], phnum=0), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)], phoff=(1 << 64) - 1), Reason.TRUNCATED_IMAGE),
        (core([]), Reason.CORRUPT_IMAGE),
        (core([((1 << 64) - 4096, 8192, PAGE)]), Reason.CORRUPT_IMAGE),
        (core([(0, 1, PAGE)]), Reason.CORRUPT_IMAGE),
        (core([(0, 4096, PAGE)])[:40], Reason.TRUNCATED_IMAGE),
        (core([(0, 4096, PAGE)])[:100], Reason.TRUNCATED_IMAGE),
    ],
)
def test_headers_that_lie(data: bytes, wanted: Reason) -> None:
    assert reason(data) is wanted


@pytest.mark.parametrize(
    "notes", [b"", note(b"CORE\0"), struct.pack("<III", 4, 1 << 31, 0) + b"VMCO"], ids=["none", "other", "cut"]
)
def test_a_core_without_vmcoreinfo_has_none(notes: bytes) -> None:
    assert ElfLayout(Bytes(core([(0, 4096, PAGE)], notes=notes))).vmcoreinfo == b""


def test_the_runs_that_a_cut_core_holds() -> None:
    data = core([(0, 0x1000, PAGE), (0x4000, 0x3000, PAGE), (0x9000, 0x1000, PAGE)])
    assert list(ElfLayout(Bytes(data)).runs()) == [range(0x1000), range(0x4000, 0x5000), range(0x9000, 0xA000)]
    runs = list(ElfLayout(Bytes(data[:-100])).runs())
    assert runs[-1] == range(0x9000, 0xA000 - 100)


def test_a_cut_core_is_read_as_far_as_it_goes() -> None:
    layout = ElfLayout(Bytes(core([(0, 0x2000, PAGE + PAGE)])[:-100]))
    assert layout.trouble(0) is None
    assert layout.trouble(0x1000) is Reason.SHORT_FILE
    with pytest.raises(FaultError) as caught:
        layout.read(0x1F00, 0x100, 0, True)
    assert caught.value.address == 0x2000 - 100


@pytest.mark.parametrize("percent", [1, 50, 99])
def test_a_real_core_that_was_cut(from_bytes: Any, percent: int) -> None:
    data = fixture("qemu/vmcore.elfd").path.read_bytes()
    image = from_bytes(data[: len(data) * percent // 100])
    layout = image.kernel.dump.layout
    pages = [layout.trouble(a) for a in range(0, 40 << 20, 4096)]
    assert pages.count(Reason.SHORT_FILE)
    assert pages.count(None)
    assert image.info().release == "6.1.192-bed"


ranges = st.tuples(st.integers(0, 40), st.integers(0, 12), st.integers(0, 12))


@given(st.lists(ranges, max_size=8))
def test_overlapping_segments_are_cut_right(specs: list[tuple[int, int, int]]) -> None:
    loads = [
        Segment(PT_LOAD, 1000 * i, 0, start, filesz, filesz + hole)
        for i, (start, filesz, hole) in enumerate(specs)
        if filesz + hole
    ]
    pieces = _flatten(loads)
    assert all(low[1] <= high[0] for low, high in itertools.pairwise(pieces))
    for byte in range(70):
        holders = [s for s in loads if s.paddr <= byte < s.paddr + s.memsz]
        offsets = {s.offset + byte - s.paddr for s in holders if byte < s.paddr + s.filesz}
        found = [(o if o is None else o + byte - start) for start, end, o in pieces if start <= byte < end]
        if offsets:
            assert len(found) == 1
            assert found[0] in offsets
        else:
            assert found == ([None] if holders else [])
