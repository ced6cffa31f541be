"""The compressors: round trips, against other implementations, and noise."""

from __future__ import annotations

import ctypes
import ctypes.util
import random
import zlib

import lz4.block
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from images import DATA
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.swap import lzo
from kvmd.images.linux.swap.codecs import CODECS, decompress

PAGE = 4096
# A page as this test's other half: text, noise, zeros, one byte, and mixes of them.
PAGES = st.one_of(
    st.binary(min_size=1, max_size=64).map(lambda seed: (seed * PAGE)[:PAGE]),
    st.integers(0, 2**32).map(lambda seed: random.Random(seed).randbytes(PAGE)),
    st.lists(st.tuples(st.binary(min_size=1, max_size=16), st.integers(1, 600)), min_size=1, max_size=40).map(
        lambda parts: b"".join(piece * count for piece, count in parts)[:PAGE].ljust(PAGE, b"\0")
    ),
)


def deflate(page: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -11)  # crypto/deflate.c: DEFLATE_DEF_WINBITS
    return stream.compress(page) + stream.flush()


PACK = {
    "lz4": lambda page: lz4.block.compress(page, store_size=False),
    "lz4hc": lambda page: lz4.block.compress(page, mode="high_compression", store_size=False),
    "zstd": lambda page: zstandard.ZstdCompressor(level=3).compress(page),
    "deflate": deflate,
}


@pytest.mark.parametrize("name", PACK)
@given(page=PAGES)
@settings(max_examples=50, deadline=None)
def test_what_was_compressed_comes_back(name: str, page: bytes) -> None:
    assert decompress("zswap", name, PACK[name](page), PAGE) == page


def test_the_kernels_own_streams() -> None:
    """Pages as zram of Linux 6.1 compressed them with lzo and lzo-rle; each is followed by its CRC."""
    streams = (DATA / "lzo-pages.bin").read_bytes()
    at = count = runs = 0
    while at < len(streams):
        length, crc = int.from_bytes(streams[at : at + 4], "little"), int.from_bytes(streams[at + 4 : at + 8], "little")
        data = streams[at + 8 : at + 8 + length]
        assert zlib.crc32(lzo.decompress(data, PAGE)) == crc
        runs += data[:2] == b"\x11\x01"
        at, count = at + 8 + length, count + 1
    assert count > 20
    assert 0 < runs < count


LIBRARY = ctypes.util.find_library("lzo2")


@pytest.mark.skipif(LIBRARY is None, reason="needs liblzo2, the reference implementation")
@given(page=PAGES)
@settings(max_examples=200, deadline=None)
def test_lzo_against_the_reference(page: bytes) -> None:
    library = ctypes.CDLL(LIBRARY)
    out, length = ctypes.create_string_buffer(2 * PAGE), ctypes.c_size_t(2 * PAGE)
    work = ctypes.create_string_buffer(1 << 17)
    assert library.lzo1x_1_compress(page, ctypes.c_size_t(PAGE), out, ctypes.byref(length), work) == 0
    assert lzo.decompress(out.raw[: length.value], PAGE) == page


# Streams by hand, after Documentation/staging/lzo.rst: literals, a copy of each kind, a run of zeros, the end.
END = b"\x11\0\0"
BY_HAND = [
    (bytes([17 + 5]) + b"hello" + END, b"hello"),
    (bytes([17 + 5]) + b"abcde" + bytes([0x40 | 4 << 2, 0]) + END, b"abcdeabc"),  # 3 bytes from 5 ago
    (bytes([17 + 4]) + b"abcd" + bytes([0x20 | 3, 3 << 2, 0]) + END, b"abcdabcda"),  # 5 from 4 ago
    (bytes([17 + 1]) + b"x" + bytes([0x20, 0, 9, 0, 0]) + END, b"x" * (1 + 2 + 31 + 255 + 9)),  # a long one of one byte
    (
        b"\x11\x01" + bytes([17 + 4]) + b"abcd" + bytes([0x18 | 5, 0xFC, 0xFF, 2]) + END,
        b"abcd" + bytes((2 << 3 | 5) + 4),
    ),
    (bytes([17 + 4]) + b"abcd" + bytes([0x40 | 1, 0]) + b"Z" + END, b"abcdddd" + b"Z"),  # and a literal after it
    (b"\0\x01" + b"q" * 19 + END, b"q" * 19),  # a long string of literals
    (END, b""),
]


@pytest.mark.parametrize(("data", "page"), BY_HAND)
def test_streams_by_hand(data: bytes, page: bytes) -> None:
    assert lzo.decompress(data, PAGE) == page


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too early"),
        (b"\x12", "literals"),
        (bytes([17 + 5]) + b"hell", "literals"),
        (bytes([17 + 5]) + b"hello", "too early"),
        (bytes([17 + 5]) + b"hello" + END + b"!", "after the end"),
        (bytes([17 + 5]) + b"hello" + b"\x12\0\0", "no|none"),
        (bytes([17 + 4]) + b"abcd" + bytes([0x20 | 3, 0xFC, 0]) + END, "before the beginning"),
        (bytes([17 + 4]) + b"abcd" + bytes([0x20]) + bytes(100) + b"\1\0\0" + END, "more output"),
        (b"\x11\x01" + bytes([17 + 4]) + b"abcd" + bytes([0x18, 0xFC, 0xFF, 255]) * 9 + END, "more output"),
    ],
)
def test_lzo_that_makes_no_sense(data: bytes, why: str) -> None:
    with pytest.raises(lzo.LzoError, match=why):
        lzo.decompress(data, PAGE)


@pytest.mark.parametrize("name", CODECS)
@given(data=st.binary(min_size=0, max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_is_an_error_or_a_page(name: str, data: bytes) -> None:
    try:
        assert len(decompress("zram", name, data, PAGE)) == PAGE
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_PAGE
        assert e.message.startswith("in zram")


@pytest.mark.parametrize("name", PACK)
@given(page=PAGES, at=st.integers(0, 200), flip=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_damage_is_an_error_or_another_page(name: str, page: bytes, at: int, flip: int) -> None:
    data = bytearray(PACK[name](page))
    data[at % len(data)] ^= flip
    try:
        assert len(decompress("zswap", name, bytes(data), PAGE)) == PAGE
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_PAGE


@pytest.mark.parametrize("name", PACK)
@pytest.mark.parametrize("length", [0, 1, PAGE - 1, PAGE + 1, 64 << 20])
def test_what_is_no_page_is_refused_and_not_allocated(name: str, length: int) -> None:
    with pytest.raises(KvmError) as caught:
        decompress("zswap", name, PACK[name](bytes(length)), PAGE)
    assert caught.value.reason is Reason.CORRUPT_PAGE


@pytest.mark.parametrize(("where", "name"), [("zswap", "842"), ("zram", "842"), ("zswap", "")])
def test_a_compressor_that_is_not_known(where: str, name: str) -> None:
    with pytest.raises(KvmError) as caught:
        decompress(where, name, b"whatever", PAGE)
    assert caught.value.reason is Reason.NOT_PRESENT
    assert caught.value.message.startswith(f"in {where}, unsupported compressor")
    assert caught.value.metadata["compressor"] == name
