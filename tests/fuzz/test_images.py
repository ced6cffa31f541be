"""Property tests of every parser of dumps: whatever the bytes, the answer is a KvmError or a value."""

from __future__ import annotations

import os
import struct
import tempfile
from pathlib import Path

from drgn import Architecture, Platform, Program, TypeKind
from hypothesis import given, settings
from hypothesis import strategies as st

from btf import Builder
from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux import elf
from kvmd.images.linux.btf import Btf, Kind
from kvmd.images.linux.source import FLAT_MAGIC, FileSource, FlatSource
from kvmd.images.linux.types import Types
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.images.registry import open_image
from kvmd.v1 import memory_pb2

MICRO = fixture("micro/zstd").path.read_bytes()
EXPECTED = {
    *(Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE, Reason.NO_VMCOREINFO, Reason.SPLIT_IMAGE),
    *(Reason.UNSUPPORTED_FORMAT, Reason.EMPTY_FILE),
}
word = st.one_of(st.integers(0, 12), st.sampled_from([0x7FFFFFFF, 0xFFFFFFFF, 0x80000000]), st.integers(0, 2**32 - 1))


class Bytes:
    """A source of bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length] if offset >= 0 else b""


def use(types: Types) -> None:
    """Look at everything that a BTF blob gives."""
    for type_id in range(min(len(types.btf), 64)):
        try:
            found = types.type(type_id)
            if found.kind in (TypeKind.STRUCT, TypeKind.UNION) and found.is_complete():
                for member in found.members:
                    assert member.type is not None
                found.has_member("absent")
        except KvmError as e:
            assert e.reason is Reason.CORRUPT_DATA


@given(
    st.lists(
        st.tuples(
            st.integers(0, 20), st.sampled_from(["", "a", "b"]), word, st.integers(0, 1), st.lists(word, max_size=6)
        ),
        max_size=12,
    )
)
@settings(deadline=None, max_examples=300)
def test_btf_of_arbitrary_types(rows: list[tuple[int, str, int, int, list[int]]]) -> None:
    builder = Builder()
    for kind, name, value, flag, extra in rows:
        fixed = {1: 1, 3: 3, 14: 1, 17: 1}.get(kind, 0)
        each = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}.get(kind, 0)
        vlen = len(extra) // each if each else 0
        words = tuple((extra + [0] * 6)[: fixed + each * vlen])
        builder.add(kind, name, value, words, vlen=vlen, flag=flag)
    try:
        blob = Btf(builder.bytes())
        assert len(blob) == len(rows) + 1
        assert blob.find("c", *Kind) is None
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
        return
    use(Types(Program(Platform(Architecture.X86_64)), blob))
    try:
        found = {blob.constant(name) for name in ("a", "b", "c")}
        assert found <= {None, *range(1, len(blob))}
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA


@given(st.binary(max_size=400), st.booleans())
@settings(deadline=None, max_examples=200)
def test_btf_of_arbitrary_bytes(data: bytes, headed: bool) -> None:
    if headed:
        half = len(data) // 8 * 4
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, half, half, len(data) - half + 1)
        data = head + data + b"\0"
    try:
        blob = Btf(data)
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
    else:
        use(Types(Program(Platform(Architecture.X86_64)), blob))


def open_bytes(data: bytes) -> None:
    """Open and read a little of whatever this is."""
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(data)
        fd = os.open(file.name, os.O_RDONLY)
        try:
            image = open_image(Files(File(fd, "core")))
            for address in (0, 0x1000, 1 << 21, 1 << 40):
                try:
                    assert len(image.read(address, 64, memory_pb2.ADDRESS_SPACE_PHYSICAL)) == 64
                except KvmError as e:
                    assert e.address is not None
        except KvmError as e:
            assert e.reason in EXPECTED
        finally:
            os.close(fd)


@given(st.lists(st.tuples(st.integers(0, 4096 + 104), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_kdump_headers_with_bytes_changed(changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(MICRO)
    for at, piece in changes:
        data[at : at + len(piece)] = piece
    open_bytes(bytes(data))


@given(
    st.sampled_from([b"", b"KDUMP   ", FLAT_MAGIC, b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x04\0"]),
    st.binary(max_size=900),
)
@settings(deadline=None, max_examples=150)
def test_files_of_arbitrary_bytes(magic: bytes, data: bytes) -> None:
    open_bytes(magic + data)


@given(st.lists(st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=40)), max_size=8))
@settings(deadline=None)
def test_flattened_records_read_as_they_were_written(records: list[tuple[int, bytes]]) -> None:
    """Records that don't overlap partly, which no writer makes, are the file they were made from."""
    whole: dict[int, int] = {}
    written: dict[int, bytes] = {}
    for start, data in records:
        spans = [(s, s + len(d)) for s, d in written.items() if s != start]
        if any(s < start + len(data) and start < e for s, e in spans) or len(written.get(start, data)) != len(data):
            continue
        written[start] = data
        whole.update(enumerate(data, start))
    body = b"".join(struct.pack(">qq", start, len(data)) + data for start, data in written.items())
    source = FlatSource(Bytes(FLAT_MAGIC.ljust(4096, b"\0") + body + b"\xff" * 16))
    assert source.size == max(whole, default=-1) + 1
    for start, data in written.items():
        assert source.read(start, len(data)) == data
    for at in range(source.size):
        assert source.read(at, 1) == (bytes([whole[at]]) if at in whole else b"")


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_notes_and_vmcoreinfo_of_arbitrary_bytes(data: bytes) -> None:
    assert sum(len(name) + len(text) + 12 for name, _, text in elf.notes(data)) <= len(data)
    info = VmcoreInfo.parse(data)
    assert all(0 <= value < 1 << 64 for value in info.symbols().values())


def test_a_file_source_reads_what_there_is() -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        source = FileSource(file.fileno())
        assert (source.size, source.read(4, 100), source.read(10, 1), source.read(-1, 5)) == (10, b"456789", b"", b"")
