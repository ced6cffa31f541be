"""Kallsyms tables of every layout are found where they lie; damaged ones are not, quickly."""

from __future__ import annotations

import struct
import time

import pytest

from kallsyms import LAYOUTS, TEXT, Made, made, symbols
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.scan import kallsyms
from kvmd.images.linux.scan.kallsyms import BANNER, Symbols, candidates, describes, parse, the_one
from kvmd.images.linux.scan.names import DIGITS
from kvmd.images.linux.scan.search import search, window

AT = TEXT + (8 << 20)
PAGE = 4096


def found(tables: Made) -> list[Symbols]:
    return list(parse(tables.data, tables.data.index(DIGITS), AT))


def put(tables: Made, label: str, data: bytes, more: int = 0) -> Made:
    at = tables.at[label] + more
    return Made(tables.data[:at] + data + tables.data[at + len(data) :], tables.at)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout(name: str) -> None:
    rows = symbols(layout=LAYOUTS[name])
    (one,) = found(made(LAYOUTS[name]))
    assert list(zip(one.values, one.names, strict=True)) == rows
    assert one.address(b"linux_banner") == TEXT + 24 * 3000
    assert one.address(b"absent") is None


@pytest.mark.parametrize("count", [1024, 1025, 1279, 1280, 1281, 9000])
@pytest.mark.parametrize("name", ["4.19", "5.10", "6.2", "7.0"])
def test_any_number_of_symbols(name: str, count: int) -> None:
    rows = symbols(count, LAYOUTS[name])
    (one,) = found(made(LAYOUTS[name], rows))
    assert one.names == [row[1] for row in rows]
    assert one.values == [row[0] for row in rows]


def test_an_order_by_name_that_begins_as_a_marker_would() -> None:
    rows = symbols(9000, LAYOUTS["6.2"])
    plain = made(LAYOUTS["6.2"], rows)
    (last,) = struct.unpack_from("<I", plain.data, plain.at["order"] - (plain.at["order"] % 8 or 4))
    first = next(i for i in range(1, 9000) if 1024 < int.from_bytes(i.to_bytes(3, "big"), "little") - last < 1 << 18)
    rows[first] = (rows[first][0], b"-" + rows[first][1][1:])
    (one,) = found(made(LAYOUTS["6.2"], rows))
    assert one.names == [row[1] for row in rows]


def test_many_numbers_that_could_be_that_of_the_names() -> None:
    rows = symbols(9000, LAYOUTS["6.2"])
    table = made(LAYOUTS["6.2"], rows)
    (one,) = found(put(table, "before", struct.pack("<I", 9001) * 500))
    assert one.names == [row[1] for row in rows]


def test_names_of_more_than_127_tokens() -> None:
    rows = symbols()
    rows[100] = (rows[100][0], b"T" + b"xyzzy" * 90)
    (one,) = found(made(LAYOUTS["6.4"], rows))
    assert one.names[100] == rows[100][1]


def test_as_drgn_has_them() -> None:
    (one,) = found(made(LAYOUTS["5.10"]))
    index = one.index()
    (text,) = index(None, "function_5_of_a_long_name_", None, True)  # type: ignore[arg-type]
    assert (text.address, text.size) == (TEXT + 24 * 5, 24)
    (percpu,) = index(None, "__per_cpu_19", None, True)  # type: ignore[arg-type]
    assert (percpu.address, percpu.size) == (0x40 * 19, 0)  # not as far as the kernel


DAMAGE = {
    "a marker that lies": lambda t: put(t, "markers", struct.pack("<I", 5), 4 * 3),
    "markers that descend": lambda t: put(t, "markers", struct.pack("<II", 9000, 8000), 4 * 3),
    "the first marker": lambda t: put(t, "markers", b"\1\0\0\0"),
    "a name without a length": lambda t: put(t, "names", b"\0"),
    "a name that runs past the end": lambda t: put(t, "names", b"\xff\x0f"),
    "names torn in the middle": lambda t: put(t, "names", bytes(PAGE), 8192),
    "too few symbols": lambda t: put(t, "count", struct.pack("<I", 2999)),
    "too many symbols": lambda t: put(t, "count", struct.pack("<I", 3001)),
    "symbols without number": lambda t: put(t, "count", struct.pack("<I", 0xFFFFFFFF)),
    "values that descend": lambda t: put(t, "offsets", struct.pack("<I", 0x80000000), 4 * 1500),
    "another base": lambda t: put(t, "base", struct.pack("<Q", 0x1234)),
    "a base at the end of memory": lambda t: put(t, "base", b"\xff" * 8),
    "an index that jumps": lambda t: put(t, "index", struct.pack("<H", 60000), 2 * 100),
    "an index of zeroes": lambda t: put(t, "index", bytes(512)),
    "tokens that no name has": lambda t: put(t, "tokens", b"\1", 2 * ord("0") - 30),
    "tokens without end": lambda t: put(t, "tokens", b"x" * 400, 2 * ord("A")),
    "a window that ends in the tokens": lambda t: Made(t.data[: t.data.index(DIGITS) + 100], t.at),
    "a window that begins in the names": lambda t: Made(t.data[t.at["names"] + 500 :], t.at),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_tables_are_none(how: str) -> None:
    tables = DAMAGE[how](made(LAYOUTS["5.10"]))
    assert tables.data != made(LAYOUTS["5.10"]).data
    began = time.monotonic()
    assert found(tables) == []
    assert time.monotonic() - began < 2


class Room:
    """Memory with data at some addresses, in pages."""

    def __init__(self, parts: dict[int, bytes]) -> None:
        self.pages: dict[int, bytes] = {}
        for at, data in parts.items():
            padded = bytes(at % PAGE) + data + bytes(-(at + len(data)) % PAGE)
            for i in range(0, len(padded), PAGE):
                self.pages[(at & -PAGE) + i] = padded[i : i + PAGE]

    def read(self, address: int, length: int) -> bytes | None:
        pages = [self.pages.get(page) for page in range(address & -PAGE, address + length, PAGE)]
        if None in pages:
            return None
        return b"".join(filter(None, pages))[address % PAGE :][:length]


def kernel(*tables: Made, banner: bytes = BANNER) -> Room:
    parts = {AT + i * (4 << 20): t.data for i, t in enumerate(tables)}
    return Room(parts | {TEXT + 24 * 3000: banner, TEXT: b"code"})


def test_a_kernel_among_pages_that_cannot_be_read() -> None:
    room = kernel(made(LAYOUTS["5.10"]))
    one = kallsyms.of_kernel(room.read, TEXT, PAGE)
    assert one is not None
    assert one.names == [name for _, name in symbols()]


def test_a_kernel_without_tables() -> None:
    assert kallsyms.of_kernel(kernel().read, TEXT, PAGE) is None
    assert kallsyms.of_kernel(Room({}).read, TEXT, PAGE) is None


def test_tables_that_memory_contradicts_do_not_count() -> None:
    room = kernel(made(LAYOUTS["5.10"]), banner=b"something else")
    assert kallsyms.of_kernel(room.read, TEXT, PAGE) is None
    room = kernel(made(LAYOUTS["5.10"]))
    digits = (place for _, place in search(room.read, [range(TEXT, TEXT + (12 << 20))], (DIGITS,), PAGE))
    (one,) = candidates(room.read, digits, PAGE)
    assert describes(one, room.read, TEXT)
    assert not describes(one, room.read, TEXT + PAGE)


def test_functions_only_count_by_stext() -> None:
    rows = [row for row in symbols() if row[1][:1] in b"TtW"]
    room = kernel(made(LAYOUTS["5.10"], rows))
    assert kallsyms.of_kernel(room.read, TEXT, PAGE) is not None


def test_two_kernels_are_an_error_and_twice_the_same_is_none() -> None:
    other = symbols()
    other[50] = (other[50][0], b"Tanother_name")
    with pytest.raises(KvmError) as caught:
        kallsyms.of_kernel(kernel(made(LAYOUTS["5.10"]), made(LAYOUTS["5.10"], other)).read, TEXT, PAGE)
    assert caught.value.reason is Reason.AMBIGUOUS
    assert "execfile" in caught.value.message
    again = kernel(made(LAYOUTS["5.10"]), made(LAYOUTS["5.10"]))
    assert kallsyms.of_kernel(again.read, TEXT, PAGE) is not None
    assert the_one([]) is None


def test_search_finds_across_chunks_and_not_across_gaps() -> None:
    mib = 1 << 20
    room = Room({mib - 4: b"needle in", 5 * mib - 3: DIGITS, 7 * mib: b"needle", 8 * mib - 3: b"nee"})
    for page in range(0, 9 * mib, PAGE):
        room.pages.setdefault(page, bytes(PAGE))
    del room.pages[2 * mib]
    room.pages[2 * mib - PAGE] = bytes(PAGE - 3) + b"nee"
    room.pages[2 * mib + PAGE] = b"dle" + bytes(PAGE - 3)
    hits = list(search(room.read, [range(9 * mib)], (b"needle", DIGITS), PAGE))
    assert sorted(hits) == sorted([(b"needle", mib - 4), (b"needle", 7 * mib), (DIGITS, 5 * mib - 3)])


@pytest.mark.parametrize("start", [0x5000, 0x5001, 0x5B68, 0x5FFF])
@pytest.mark.parametrize("missing", [(), (0x6000,), (0x5000,), (0x7000,), (0x6000, 0x8000)])
def test_a_window_has_each_byte_in_its_place(start: int, missing: tuple[int, ...]) -> None:
    whole = bytes(i % 251 for i in range(0x5000))
    room = Room({0x5000: whole})
    for page in missing:
        del room.pages[page]
    expected = bytearray(whole)
    for page in missing:
        expected[page - 0x5000 : page - 0x4000] = bytes(PAGE)
    end = 0x9123
    assert window(room.read, start, end, PAGE) == expected[start - 0x5000 : end - 0x5000]
