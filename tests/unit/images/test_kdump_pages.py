"""Long reads of KDUMP files without drgn: drgn's bytes, or nothing, of every codec and of damaged files."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from drgn import FaultError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from images import fixture
from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux import kdumpcodecs
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kdump import KdumpLayout
from kvmd.images.linux.kdumpcodecs import CODECS, unpack
from kvmd.images.linux.kdumppages import PageReader
from kvmd.images.linux.program import Dump
from kvmd.images.linux.scan.recover import open_dump
from kvmd.v1 import memory_pb2
from repack import CODECS as PACKERS
from repack import PAGE, ROW, flattened, repacked

SOURCE = fixture("qemu/vmcore.kdump").path
PHYSICAL = memory_pb2.ADDRESS_SPACE_PHYSICAL
FORMS = [*PACKERS, "zlib-spread", "zstd-flat", "lzo-flat"]


class Bytes:
    """A dump in memory."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length] if offset >= 0 and length > 0 else b""


@cache
def made(form: str) -> bytes:
    codec, _, how = form.partition("-")
    data = repacked(SOURCE, codec, spread=how == "spread")
    return flattened(data) if how == "flat" else data


@cache
def undamaged() -> LinuxImage:
    return LinuxImage(Files(File(os.open(SOURCE, os.O_RDONLY), "undamaged")))


@pytest.fixture(scope="module", params=FORMS)
def dump(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dump]:
    path = tmp_path_factory.mktemp("dumps") / request.param
    path.write_bytes(made(request.param))
    fd = os.open(path, os.O_RDONLY)
    yield open_dump(File(fd, request.param))
    os.close(fd)


@cache
def present() -> list[int]:
    """Addresses of the pages that the dump holds."""
    layout = KdumpLayout(Bytes(SOURCE.read_bytes()))
    return [at for at in range(0, 1 << 30, PAGE) if layout.trouble(at) is None]


@cache
def runs() -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for page in present():
        if found and sum(found[-1]) == page:
            found[-1] = (found[-1][0], found[-1][1] + PAGE)
        else:
            found.append((page, PAGE))
    return found


def test_as_drgn_reads(dump: Dump) -> None:
    """Of each run of pages some pieces, that begin and end anywhere; and all that a run has."""
    assert dump.into is not None
    picked, total = random.Random(5), 0
    for start, size in runs():
        for _ in range(3):
            at = picked.randrange(size)
            length = picked.randint(1, min(size - at, 1 << 20))
            into = bytearray(length)
            assert dump.into(start + at, memoryview(into)), (start, at, length)
            assert into == dump.prog.read(start + at, length, True)
            total += length
    assert total > 8 << 20


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 300 << 20), st.integers(1, 1 << 20))
def test_all_of_it_or_nothing(dump: Dump, address: int, length: int) -> None:
    assert dump.into is not None
    into = bytearray(b"\xa5" * length)
    whole = all(dump.layout.trouble(page) is None for page in range(address & -PAGE, address + length, PAGE))
    assert dump.into(address, memoryview(into)) is whole
    assert into == (dump.prog.read(address, length, True) if whole else b"\xa5" * length)


def unpacked(flag: int, packed: list[bytes]) -> bytes:
    into = bytearray(b"\xa5" * (PAGE * len(packed)))
    unpack(flag, PAGE, packed, memoryview(into))
    return bytes(into)


def test_all_codecs_are_here() -> None:
    """This drgn brings LZO and Snappy; with another they may be missing, and drgn reads what they have packed."""
    assert set(CODECS) == {flag for flag, _ in PACKERS.values()}


@pytest.mark.parametrize("codec", PACKERS)
def test_a_codec_gives_a_page_or_fails(codec: str) -> None:
    flag, pack = PACKERS[codec]
    page = random.Random(1).randbytes(900) + bytes(PAGE - 900)
    packed = pack(page)
    assert unpacked(flag, [packed, packed]) == 2 * page
    picked = random.Random(2)
    for _ in range(2000):
        bad = bytearray(packed)
        for _ in range(picked.randint(1, 4)):
            bad[picked.randrange(len(bad))] = picked.randrange(256)
        with contextlib.suppress(ValueError):
            assert len(unpacked(flag, [bytes(bad[: picked.randint(0, len(bad))])])) == PAGE


NO_PAGES = [("zlib", 1 << 24), ("zstd", 1 << 24), *((codec, PAGE + by) for codec in PACKERS for by in (-1, 1))]


@pytest.mark.parametrize(("codec", "size"), NO_PAGES)
def test_another_size_than_a_page(codec: str, size: int) -> None:
    """A frame's own word for its size is not believed, nor is a stream read to its end."""
    flag, pack = PACKERS[codec]
    packed = pack(bytes(size))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):  # noqa: PT011 - any
            unpacked(flag, [packed])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_codec_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="0x23"):
        unpacked(0x23, [b""])


def with_row(codec: str, number: int, **changes: int) -> PageReader:
    """A dump one of whose descriptors says something else."""
    data = bytearray(made(codec))
    layout = KdumpLayout(Bytes(bytes(data)))
    at = data.index(layout.descriptors(number, 1))
    row = dict(zip(("offset", "size", "flags", "page_flags"), ROW.unpack_from(data, at), strict=True))
    ROW.pack_into(data, at, *(row | changes).values())
    source = Bytes(bytes(data))
    return PageReader(source, KdumpLayout(source))


@pytest.mark.parametrize(
    "changes",
    [
        {"offset": 1 << 63},
        {"offset": (1 << 64) - 1},
        {"offset": 0},
        {"size": 0},
        {"size": PAGE + 1},
        {"size": (1 << 32) - 1},
        {"flags": 1 << 31 | 0x27},
        {"flags": 2},
        {"flags": 4},
        {"flags": 0x20},
        {"flags": 0},
    ],
    ids=str,
)
def test_a_page_descriptor_that_lies(changes: dict[str, int]) -> None:
    """It costs the reads that meet that page, and nothing else."""
    start = next(start for start, size in runs() if size > 64 * PAGE)
    rank = present().index(start) + 3
    reader = with_row("zlib", rank, **changes)
    honest = PageReader(Bytes(made("zlib")), KdumpLayout(Bytes(made("zlib"))))
    into, plain = bytearray(64 * PAGE), bytearray(64 * PAGE)
    assert honest.read_into(start, memoryview(plain))
    assert not reader.read_into(start, memoryview(into))
    assert reader.read_into(start + 4 * PAGE, memoryview(into)[: 32 * PAGE])
    assert into[: 32 * PAGE] == plain[4 * PAGE : 36 * PAGE]


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(PACKERS)), st.integers(0, 2000), st.randoms(use_true_random=False))
def test_damage_is_read_as_drgn_reads_it(tmp_path: Path, codec: str, near: int, picked: random.Random) -> None:
    """Whatever is written over descriptors and packed pages, what is read is what drgn reads, or is left to it."""
    data = bytearray(made(codec))
    layout = KdumpLayout(Bytes(bytes(data)))
    table = data.index(layout.descriptors(0, 64))
    start, size = picked.choice([run for run in runs() if run[1] >= 16 * PAGE])
    rank = layout.rank(start // PAGE, 1)
    assert rank is not None
    for _ in range(picked.randint(1, 6)):
        row = table + (rank + picked.randrange(16)) * ROW.size
        offset, length, flags, _ = ROW.unpack_from(made(codec), row)
        if picked.random() < 0.5:
            data[offset + picked.randrange(length)] = picked.randrange(256)
        else:
            field, values = picked.choice([
                (0, [offset + near, offset - near, 0, len(data) - near, near << 52, table]),
                (8, [length - 1, length + 1, near, PAGE, PAGE + 1, (1 << 32) - 1, 0]),
                (12, [flags ^ 1 << near % 8, 0, 1, 2, 4, 0x20, 0x21, near]),
            ])  # fmt: skip
            struct.pack_into("<Q" if not field else "<I", data, row + field, picked.choice(values) & (1 << 64) - 1)
    (tmp_path / "damaged").write_bytes(data)
    fd = os.open(tmp_path / "damaged", os.O_RDONLY)
    try:
        image = LinuxImage(Files(File(fd, "damaged")))
        drgn, whole = image.kernel.dump.prog, undamaged()
        with contextlib.suppress(FaultError, ValueError):  # it looks for the kernel first, maybe in a bad page
            drgn.read(start, 8, True)
        for at in range(start, start + 16 * PAGE, PAGE // 2):
            into = bytearray(picked.choice([PAGE // 2, PAGE, 5000, size - (at - start)]) & 0xFFFFF)
            if image.read_into(at, memoryview(into), PHYSICAL):
                try:
                    assert into == drgn.read(at, len(into), True)
                except FaultError:  # libdeflate has made more of it than zlib can
                    assert codec == "zlib"
                    assert into == whole.read(at, len(into), PHYSICAL)
            with contextlib.suppress(KvmError, FaultError):
                assert image.read(at, PAGE // 2, PHYSICAL) == drgn.read(at, PAGE // 2, True)
    finally:
        os.close(fd)


@given(
    st.binary(max_size=PAGE), st.sampled_from([1, 6, 9]), st.lists(st.tuples(st.integers(0, PAGE), st.integers(0, 255)))
)
def test_libdeflate_makes_what_zlib_makes(start: bytes, level: int, damage: list[tuple[int, int]]) -> None:
    """Or what was packed, where zlib gives up; or both say that it is damaged."""
    page = start.ljust(PAGE, b"k")
    packed = bytearray(zlib.compress(page, level))
    for at, value in damage:
        packed[at % len(packed)] = value
    made_of = []
    for codec in (kdumpcodecs._deflate(), kdumpcodecs._zlib()):
        assert codec is not None
        into = bytearray(2 * PAGE)
        try:
            codec([bytes(packed)] * 2, PAGE, memoryview(into))
        except ValueError:
            made_of.append(None)
        else:
            made_of.append(into)
    assert made_of[0] in ([page * 2, None] if made_of[1] is None else [made_of[1]])
    assert damage or made_of[1] == page * 2


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(list(PACKERS)), st.integers(0, 1 << 30), st.randoms(use_true_random=False))
def test_damage_anywhere(codec: str, where: int, picked: random.Random) -> None:
    """Whatever is written over headers, bitmaps, descriptors and pages: bytes, nothing, or an error of ours."""
    data = bytearray(made(codec))
    for _ in range(20):
        struct.pack_into("<I", data, (where + picked.randrange(1 << 16)) % (len(data) - 4), picked.getrandbits(32))
    source = Bytes(bytes(data))
    try:
        reader = PageReader(source, KdumpLayout(source))
    except KvmError:
        return
    for start, _ in runs()[:8]:
        into = bytearray(64 * PAGE)
        assert reader.read_into(start, memoryview(into)) in {True, False}


def test_a_cut_file(tmp_path: Path) -> None:
    data = made("zlib")[:-200_000]
    source = Bytes(data)
    reader = PageReader(source, KdumpLayout(source))
    start, size = max(runs())
    assert not reader.read_into(start, memoryview(bytearray(min(size, 1 << 20))))
