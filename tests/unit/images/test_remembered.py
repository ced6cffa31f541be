"""Where something was found by scanning is remembered: the next dump is not looked through, and none is misled."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import astuple
from functools import cache

import pytest
from drgn import Symbol
from hypothesis import given, settings
from hypothesis import strategies as st

from images import fixture
from kallsyms import LAYOUTS, TEXT, Made, made, symbols
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux import scanned as by_scan
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.index import Index, Scanned, inputs, make, settled
from kvmd.images.linux.scan import kallsyms as scan
from kvmd.images.linux.scan.names import DIGITS
from kvmd.images.linux.scan.tables import Tables
from kvmd.images.linux.sections import pack, unpack
from kvmd.v1 import process_pb2, symbol_pb2

from .test_index import opened

OLDER = ["linux-5.10/vmcore.kdump", "linux-5.15/vmcore.kdump"]
NO_BTF_SYMBOL = "x86-no-data-symbols/vmcore.kdump"
REQUEST = process_pb2.GetProcsRequest(arguments=True)
FAR = 8 << 20  # where tables lie after _stext
KEPT = [name for name, layout in LAYOUTS.items() if layout.values != "absolute"]


@cache
def given_by(name: str) -> bytes:
    with opened(name) as image:
        image.kernel.need_types()
        return image.index_inputs()


@cache
def made_of(name: str) -> bytes:
    return make(memoryview(given_by(name)))


def changed(whole: bytes, **parts: bytes) -> bytes:
    """An index or its inputs with other parts; ``_`` for the dot of their names."""
    return pack({**unpack(memoryview(whole)), **{name.replace("_", ".", 1): part for name, part in parts.items()}})


def parts_of(symbol: Symbol) -> tuple[object, ...]:
    return symbol.name, symbol.address, symbol.size, symbol.binding, symbol.kind


@pytest.fixture
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OLDER, NO_BTF_SYMBOL):  # by scanning
        made_of(name)

    def looked(*_: object) -> None:
        raise AssertionError("the dump is looked through")

    monkeypatch.setattr(by_scan, "of_kernel", looked)
    monkeypatch.setattr(by_scan, "blobs", looked)


@pytest.mark.parametrize("name", OLDER)
def test_every_symbol_is_as_by_scanning(name: str) -> None:
    with opened(name) as plain, opened(name, made_of(name)) as quick:
        one, other = plain.kernel._kallsyms, quick.kernel._kallsyms
        assert quick.kernel._served == {"symbols"}
        everything = list(one._index(None, None, None, False))  # type: ignore[union-attr]
        assert len(everything) > 20_000
        assert sorted(map(parts_of, everything), key=str) == sorted(
            map(parts_of, other._index(None, None, None, False)),  # type: ignore[union-attr]
            key=str,
        )
        for symbol in everything[::5]:
            assert other(symbol.name) == one(symbol.name)  # type: ignore[misc]
        assert quick.symbols(["schedule", "no such"]) == plain.symbols(["schedule", "no such"])
        assert quick.symbols(["schedule"])[0].source == symbol_pb2.SYMBOL_SOURCE_SCAN


@pytest.mark.usefixtures("no_scan")
@pytest.mark.parametrize("name", OLDER)
def test_tables_are_not_scanned_for_again(name: str) -> None:
    with opened(name, made_of(name)) as image:
        assert len(list(image.processes(REQUEST))) > 10
        assert image.info().symbols == "scan"
        assert image.kernel._served == {"symbols", "types"}
        assert image.index_inputs() == b""


@pytest.mark.usefixtures("no_scan")
def test_btf_is_not_scanned_for_again() -> None:
    with opened(NO_BTF_SYMBOL, made_of(NO_BTF_SYMBOL)) as image:
        assert image.kernel.prog.type("struct task_struct").size > 1000
        assert "types" in image.kernel._served
        assert image.index_inputs() == b""


@pytest.mark.parametrize("name", [*OLDER, NO_BTF_SYMBOL])
def test_answers_are_those_without_an_index(name: str) -> None:
    with opened(name) as plain, opened(name, made_of(name)) as quick:
        assert list(quick.processes(REQUEST)) == list(plain.processes(REQUEST))
        assert quick.info() == plain.info()


def test_symbols_are_remembered_without_types() -> None:
    with opened(OLDER[0]) as image:
        assert image.symbols(["schedule"])[0].found
        index = make(memoryview(image.index_inputs()))
    with opened(OLDER[0], index) as image:
        assert image.symbols(["schedule"])[0].found
        assert image.index_inputs() == b""
        image.kernel.need_types()
        assert image.index_inputs() == given_by(OLDER[0])


def test_what_nobody_can_write_is_told_by_the_page_tables() -> None:
    with opened(OLDER[0]) as image:
        kernel = image.kernel
        constant = kernel.image.constant  # type: ignore[union-attr]
        start, end = (kernel.address(name) for name in ("__start_rodata", "__end_rodata"))
        assert constant(kernel.address("_stext"), 1 << 20)
        assert constant(start, end - start)
        assert not constant(start, end - start + 4096)
        assert not constant(start, 1 << 40)
        for name in ("init_task", "__init_begin", "_end"):
            assert not constant(kernel.address(name), 8)
        rodata = kernel.memory.translate(start).physical
        direct = kernel.prog["page_offset_base"].value_() + rodata
        assert kernel.memory.kernel(direct, 64) == kernel.memory.kernel(start, 64)
        assert not constant(direct, 64)  # the same bytes, but not where the image is


def test_what_can_be_written_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As tables in pages that were freed, which a process of that kernel filled."""
    monkeypatch.setattr(by_scan.KernelImage, "constant", lambda *_: False)
    with opened(OLDER[0], made_of(OLDER[0])) as image:
        assert image.info().symbols == "scan"
        image.kernel.need_types()
        assert image.kernel._served == {"types"}
        assert image.index_inputs() == b""
    with opened(NO_BTF_SYMBOL, made_of(NO_BTF_SYMBOL)) as image:
        image.kernel.need_types()
        assert "types" not in image.kernel._served
        assert image.index_inputs() == b""


@pytest.mark.parametrize("by", [-(1 << 62), -4096, -8, -4, 4, 8, 4096, 1 << 30, (1 << 63) - 1])
def test_tables_that_an_index_puts_elsewhere_are_scanned_for(by: int) -> None:
    whole = unpack(memoryview(made_of(OLDER[0])))
    start, *rest = struct.unpack("<q7i", whole["scan.where"])
    moved = struct.pack("<q7i", max(min(start + by, (1 << 63) - 1), -(1 << 63)), *rest)
    with opened(OLDER[0], changed(made_of(OLDER[0]), scan_where=moved)) as image:
        assert image.symbols(["schedule"])[0].value == truth()["schedule"]
        assert "symbols" not in image.kernel._served
        image.kernel.need_types()
        assert image.index_inputs() == given_by(OLDER[0])  # and the index is replaced
    place = int.from_bytes(unpack(memoryview(made_of(NO_BTF_SYMBOL)))["btf.place"], "little", signed=True)
    lied = (max(min(place + by, (1 << 63) - 1), -(1 << 63))).to_bytes(8, "little", signed=True)
    with opened(NO_BTF_SYMBOL, changed(made_of(NO_BTF_SYMBOL), btf_place=lied)) as image:
        image.kernel.need_types()
        assert "types" not in image.kernel._served
        assert image.index_inputs() == given_by(NO_BTF_SYMBOL)


@cache
def truth() -> dict[str, int]:
    with opened(OLDER[0]) as image:
        return {name: image.symbols([name])[0].value for name in ("schedule", "jiffies", "init_task", "_end")}


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_a_lying_index_never_gives_another_address(data: st.DataObject) -> None:
    whole = unpack(memoryview(made_of(OLDER[0])))
    lied = data.draw(st.sampled_from(["scan.where", "scan.places", "scan.names", "scan.digest"]))
    part = bytearray(whole[lied])
    for at in data.draw(st.lists(st.integers(0, len(part) // 4 - 1), min_size=1, max_size=1000)):
        part[4 * at : 4 * at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 4]))
    with opened(OLDER[0], pack({**whole, lied: bytes(part[: len(part) - cut])})) as image:
        for name, address in truth().items():
            try:
                found = image.kernel.symbol(name)
            except KvmError as e:
                assert e.reason in (Reason.CORRUPT_DATA, Reason.NO_SYMBOLS)
            else:
                assert found is None or found.value == address


# A kernel that is made for it, at any address.


def at(name: str, stext: int = TEXT) -> Made:
    moved = stext - TEXT
    rows = [(value + moved if value >> 63 else value, row) for value, row in symbols(layout=LAYOUTS[name])]
    return made(LAYOUTS[name], rows, stext + FAR)


def reader(tables: Made, start: int) -> Callable[[int, int], bytes | None]:
    def read(address: int, length: int) -> bytes | None:
        found = tables.data[max(address - start, 0) :][:length] if address >= start else b""
        return found if len(found) == length else None

    return read


def found(tables: Made, stext: int) -> tuple[Tables, bytes]:
    (one,) = scan.parse(tables.data, tables.data.index(DIGITS), stext + FAR)
    assert one.tables is not None
    span = reader(tables, stext + FAR)(one.tables.start, one.tables.length)
    assert span is not None
    return one.tables, settled(one.tables, span, stext)


def of_made(tables: Made, stext: int) -> bytes:
    places, span = found(tables, stext)
    return inputs(None, b"", Scanned(span, places.start - stext))


@pytest.mark.parametrize("name", KEPT)
def test_two_kernels_of_a_build_have_one_index_wherever_they_are(name: str) -> None:
    here, there = TEXT + (64 << 20), TEXT + (514 << 20)
    index = make(memoryview(of_made(at(name, here), here)))
    assert index == make(memoryview(of_made(at(name, there), there)))
    known = Index(memoryview(index)).scanned(reader(at(name, there), there + FAR), there)
    assert known is not None
    (expected,) = scan.parse(at(name, there).data, at(name, there).data.index(DIGITS), there + FAR)
    assert known[0] == expected.tables
    every = sorted(map(parts_of, known[1].all()(None, None, None, False)), key=str)  # type: ignore[arg-type]
    assert every == sorted(map(parts_of, expected.index()(None, None, None, False)), key=str)  # type: ignore[arg-type]
    for row in every[::50]:
        assert row in map(parts_of, known[1](str(row[0])))


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - set(KEPT)))
def test_tables_of_addresses_are_not_remembered(name: str) -> None:
    tables = at(name)
    (one,) = scan.parse(tables.data, tables.data.index(DIGITS), TEXT + FAR)
    assert one.tables is None


@pytest.mark.parametrize("name", KEPT)
def test_other_bytes_anywhere_in_the_span_are_a_miss(name: str) -> None:
    """Also those between the tables, from which the places of these follow."""
    tables = at(name)
    index = Index(memoryview(make(memoryview(of_made(tables, TEXT)))))
    places, _ = found(tables, TEXT)
    first = places.start - TEXT - FAR
    assert index.scanned(reader(tables, TEXT + FAR), TEXT) is not None
    marks = {first, first + places.length - 1, *tables.at.values()} & set(range(first, first + places.length))
    for place in sorted(marks | set(range(first, first + places.length, 997))):
        data = bytearray(tables.data)
        data[place] ^= 1
        assert index.scanned(reader(Made(bytes(data), tables.at), TEXT + FAR), TEXT) is None
    for stext in (TEXT + 8, TEXT - 4096, TEXT + (2 << 20), 0, (1 << 64) - 1):
        assert index.scanned(reader(tables, TEXT + FAR), stext) is None
    assert index.scanned(lambda _address, _length: None, TEXT) is None


@pytest.mark.parametrize("name", KEPT)
def test_a_span_must_be_the_tables_and_nothing_else(name: str) -> None:
    """Whoever chooses it could else have a table begin a word later, and every symbol be its neighbour."""
    places, span = found(at(name), TEXT)
    place = places.start - TEXT
    base = places.base if places.base >= 0 else 0
    forged = {
        "more before": (bytes(8) + span, place - 8),
        "more after": (span + bytes(8), place),
        "cut before": (span[8:], place + 8),
        "cut after": (span[:-8], place),
        "offsets a word later": (span[: places.offsets] + span[places.offsets + 4 :] + bytes(4), place),
        "nothing": (b"\0", 0),
        "no tables": (bytes(len(span)), place),
    }
    if places.base >= 0:
        forged["of another kernel"] = (span[:base] + struct.pack("<Q", TEXT + 4096) + span[base + 8 :], place)
    for what, (bytes_, where) in forged.items():
        with pytest.raises(KvmError) as refused:
            make(memoryview(inputs(None, b"", Scanned(bytes_, where))))
        assert refused.value.reason is Reason.CORRUPT_DATA, what


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_whoever_chooses_the_inputs_chooses_nothing_of_what_fits(data: st.DataObject) -> None:
    tables = at(data.draw(st.sampled_from(KEPT)))
    honest = unpack(memoryview(make(memoryview(of_made(tables, TEXT)))))
    places, span = found(tables, TEXT)
    forged = bytearray(span)
    for place in data.draw(st.lists(st.integers(0, len(span) - 1), max_size=3)):
        forged[place] = data.draw(st.integers(0, 255))
    moved = data.draw(st.sampled_from([0, 0, 4, -8, 1 << 40]))
    try:
        index = make(memoryview(inputs(None, b"", Scanned(bytes(forged), places.start - TEXT + moved))))
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
        return
    if Index(memoryview(index)).scanned(reader(tables, TEXT + FAR), TEXT) is not None:
        assert {name: bytes(part) for name, part in unpack(memoryview(index)).items()} == {
            name: bytes(part) for name, part in honest.items()
        }


@given(st.one_of(st.binary(max_size=60), st.binary(min_size=36, max_size=36)))
def test_places_of_any_bytes_are_refused_or_within_the_span(data: bytes) -> None:
    try:
        tables = Tables.unpack(memoryview(data))
    except ValueError:
        return
    assert tables.packed() == data
    assert all(value <= tables.length for value in astuple(tables)[2:])
    assert len(tables.raw(bytes(min(tables.length, 1 << 16))).offsets) <= 4 * tables.count


@pytest.mark.parametrize("part", [b"", b"\0" * 7, b"\0" * 9])
def test_a_place_that_is_cut_counts_for_nothing(part: bytes) -> None:
    assert Index(memoryview(changed(made_of(NO_BTF_SYMBOL), btf_place=part))).btf_place is None
    with pytest.raises(KvmError, match="place"):
        make(memoryview(changed(given_by(NO_BTF_SYMBOL), btf_place=part)))


def test_what_is_not_there_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look through an image takes seconds, and each call asks for types."""
    looks = []
    monkeypatch.setattr(by_scan, "blobs", lambda *_: looks.append(1) or iter(()))
    path = fixture("x86-no-data-symbols/vmcore.kdump").path
    with path.open("rb") as file:
        image = LinuxImage(Files(File(file.fileno(), path.name)))
        for _ in range(3):
            with pytest.raises(KvmError) as caught:
                image.kernel.need_types()
            assert caught.value.reason is Reason.NO_TYPES
    assert looks == [1]
