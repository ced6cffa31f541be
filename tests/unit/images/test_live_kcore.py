"""Headers of /proc/kcore: a real one, made ones and broken ones."""

from __future__ import annotations

import lzma
import os
import struct
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from drgn import FaultError
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from images import DATA
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.live_kcore import Kcore, headers
from kvmd.images.linux.live_ranges import Range, Ranges

NOWHERE = (1 << 64) - 1
DIRECT = 0xFFFF888000000000
INFO = b"OSRELEASE=6.1.0\nPAGESIZE=4096\n"

Made = Callable[[bytes], int]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    """The descriptor of a file of the given bytes."""
    fds: list[int] = []

    def make(data: bytes) -> int:
        path = tmp_path / f"kcore{len(fds)}"
        path.write_bytes(data)
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield make
    for fd in fds:
        os.close(fd)


def kcore(loads: list[tuple[int, int, bytes]], info: bytes | None = INFO) -> bytes:
    """A /proc/kcore of (virtual address, physical address, data) segments."""
    note = b""
    if info is not None:
        note = struct.pack("<III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info + b"\0" * (-len(info) % 4)
    count = len(loads) + 1
    at = 64 + 56 * count
    rows = [struct.pack("<IIQQQQQQ", elf.PT_NOTE, 0, at, 0, 0, len(note), 0, 0)]
    body = note
    for virtual, physical, data in loads:
        place = (elf.PT_LOAD, 7, at + len(body), virtual, physical, len(data), len(data), 4096)
        rows.append(struct.pack("<IIQQQQQQ", *place))
        body += data
    head = struct.pack("<HHIQQQIHHHHHH", elf.ET_CORE, 62, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0)
    return b"\x7fELF\2\1\1" + b"\0" * 9 + head + b"".join(rows) + body


def test_a_real_one(made: Made) -> None:
    found = headers(made(lzma.decompress((DATA / "qemu/kcore.head.xz").read_bytes())))
    assert found.machine == 62
    assert [(r.start, r.end) for r in found.ram] == [(0x1000, 0x9F000), (0x100000, 0x27D7000)]
    assert found.direct[0] == (0xFFFFA1CD40001000, 0x9E000, 0x1000)
    assert found.vmcoreinfo.startswith(b"OSRELEASE=6.1.192-bed\n")


def test_reads_of_ram_alone(made: Made) -> None:
    data = kcore(
        [
            (0xFFFFFFFF81000000, 0x2000, b"t" * 4096),  # the kernel's image lies in RAM
            (0xFFFFC90000000000, NOWHERE, b"v" * 4096),
            (DIRECT + 0x1000, 0x1000, b"1" * 4096 + b"2" * 4096),
            (DIRECT + 0x3000, 0x3000, b"3" * 4096),
            (DIRECT + 0x8000, 0x8000, b"8" * 4096),
        ]
    )
    layout = Kcore(File(made(data), "/proc/kcore"))
    assert layout.vmcoreinfo == INFO
    assert layout.read(0x1FFE, 4, 0, True) == b"1122"
    assert layout.read(0x2FFE, 4, 0, True) == b"2233"  # from one segment to the next
    assert [layout.trouble(address) for address in (0, 0x1000, 0x4000, 0x8FFF, 0x9000)] == [
        *(Reason.BEYOND_DUMP, None, Reason.BEYOND_DUMP, None, Reason.BEYOND_DUMP),
    ]
    with pytest.raises(FaultError) as caught:
        layout.read(0x3FFE, 4, 0, True)
    assert caught.value.address == 0x4000


def test_memory_that_is_added_later(made: Made, tmp_path: Path) -> None:
    layout = Kcore(File(made(kcore([(DIRECT, 0, b"0" * 4096)])), "/proc/kcore"))
    assert layout.trouble(0x5000) is Reason.BEYOND_DUMP
    (tmp_path / "kcore0").write_bytes(kcore([(DIRECT, 0, b"0" * 4096), (DIRECT + 0x5000, 0x5000, b"5" * 4096)]))
    assert layout.read(0x5000, 2, 0, True) == b"55"


def test_no_note(made: Made) -> None:
    assert headers(made(kcore([(DIRECT, 0, b"0" * 4096)], None))).vmcoreinfo == b""


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.TRUNCATED_IMAGE),
        (b"\x7fELF" + bytes(60), Reason.CORRUPT_IMAGE),
        (kcore([]), Reason.CORRUPT_IMAGE),
        (kcore([(0xFFFFC90000000000, NOWHERE, b"v")]), Reason.CORRUPT_IMAGE),
        (kcore([(DIRECT, 0, b"0" * 16)])[:150], Reason.TRUNCATED_IMAGE),
    ],
)
def test_broken_ones(made: Made, data: bytes, reason: Reason) -> None:
    with pytest.raises(KvmError) as caught:
        headers(made(data))
    assert caught.value.reason is reason


WHOLE = kcore([(DIRECT, 0, b"0" * 64)])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6))
@example([])
def test_any_damage(tmp_path: Path, damage: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE)
    for at, value in damage:
        data[at] = value
    path = tmp_path / "damaged"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        layout = Kcore(File(fd, "kcore"))
        layout.trouble(0)
        layout.read(0, 64, 0, True)
    except (KvmError, FaultError):
        pass
    finally:
        os.close(fd)


ranges = st.lists(st.builds(lambda a, n, at: Range(a, a + n, at), *[st.integers(0, 100)] * 3), max_size=12)


@given(ranges)
def test_ranges_hold_what_any_of_them_holds(items: list[Range]) -> None:
    found = Ranges(items)
    kept = list(found)
    assert all(one.end <= other.start for one, other in pairwise(kept))
    for address in range(202):
        holders = [item for item in items if item.start <= address < item.end]
        place = found.find(address)
        assert (place is None) == (not holders)
        if place is not None:
            assert place.at + address - place.start in {item.at + address - item.start for item in holders}
