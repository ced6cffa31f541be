"""The index of a kernel build: it finds what would be found without, and a wrong one never makes a wrong answer."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from drgn import Symbol
from hypothesis import given, settings
from hypothesis import strategies as st

from btf import Builder
from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files, Indexed
from kvmd.images.linux.btf import Btf, BtfIndex, Kind
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.index import Index, inputs, make
from kvmd.images.linux.kallsyms import RawKallsyms, addresses
from kvmd.images.linux.nametable import NameTable
from kvmd.images.linux.nametable import make as table
from kvmd.images.linux.sections import pack, unpack
from kvmd.images.registry import open_image
from kvmd.v1 import process_pb2

NAMES = ["qemu/vmcore.kdump", "la57/vmcore.kdump", "kdump/vmcore.elfd", "debian-6.1-panic/vmcore.kdump"]
REQUEST = process_pb2.GetProcsRequest(arguments=True)


@contextmanager
def opened(name: str, index: bytes | None = None) -> Iterator[LinuxImage]:
    """A dump of its own, so that nothing was looked up in it yet."""
    fd = os.open(fixture(name).path, os.O_RDONLY)
    try:
        image = open_image(Files(File(fd, name)))
        assert isinstance(image, LinuxImage)
        if index is not None:
            image.use_index(memoryview(index))
        yield image
    finally:
        os.close(fd)


@cache
def made(name: str) -> bytes:
    with opened(name) as image:
        list(image.processes(process_pb2.GetProcsRequest()))
        return make(memoryview(image.index_inputs()))


def parts(symbol: Symbol) -> tuple[object, ...]:
    return symbol.name, symbol.address, symbol.size, symbol.binding, symbol.kind


def all_symbols(image: LinuxImage) -> dict[str, list[tuple[object, ...]]]:
    """As drgn decodes the whole table."""
    found = defaultdict(list)
    for symbol in image.kernel._load_kallsyms()(None, None, None, False):
        found[symbol.name].append(parts(symbol))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_symbol_is_as_drgn_has_it(name: str) -> None:
    with opened(name, made(name)) as image:
        named = image.kernel._places()
        assert named is not None
        everything = all_symbols(image)
        assert len(everything) > 20_000
        for symbol, expected in everything.items():
            assert sorted(map(parts, named(symbol)), key=str) == sorted(expected, key=str)
        assert named("") == named("no_such_symbol") == named("jiffies\0") == []


@pytest.mark.parametrize("name", NAMES)
def test_an_image_with_an_index_answers_as_one_without(name: str) -> None:
    with opened(name) as plain, opened(name, made(name)) as quick:
        assert list(quick.processes(REQUEST)) == list(plain.processes(REQUEST))
        assert quick.info() == plain.info()
        names = ["jiffies", "_stext", "schedule", "nonsense", "__per_cpu_end", "modules", ""]
        assert quick.symbols(names) == plain.symbols(names)
        address = plain.symbols(["schedule"])[0].value + 3
        assert [parts(s) for s in quick.kernel._kallsyms.at(address)] == [
            parts(s) for s in plain.kernel._kallsyms.at(address)
        ]
        assert quick.kernel._served == {"symbols", "types"}
        assert plain.kernel._served == set()


def test_every_type_is_found_as_without() -> None:
    with opened(NAMES[-1]) as image:
        data = image.kernel._btf_in_memory()
    known = Index(memoryview(made(NAMES[-1]))).types(data)
    plain, quick = Btf(data), Btf(data, index=known)
    names = {name.decode() for name, _ in plain.names()}
    assert len(names) > 40_000
    for name in sorted(names)[::7]:
        for kind in (Kind.STRUCT, Kind.UNION, Kind.TYPEDEF, Kind.FUNC, Kind.VAR, Kind.INT):
            assert quick.find(name, kind) == plain.find(name, kind)
        assert quick.find(name, *Kind) == plain.find(name, *Kind)
    assert quick.find("no such type", *Kind) is None

def test_every_constant_is_found_as_without() -> None:
    with opened(NAMES[-1]) as image:
        data = image.kernel._btf_in_memory()
    index = made(NAMES[-1])
    parts = dict(unpack(memoryview(index)))
    del parts["btf.constants"]
    earlier = pack(parts)
    plain = Btf(data)
    quick, without = (Btf(data, index=Index(memoryview(known)).types(data)) for known in (index, earlier))
    names = sorted({name.decode() for name, _ in plain.constants()})
    assert len(names) > 10_000
    for name in names[::29]:
        assert plain.constant(name) == quick.constant(name) == without.constant(name) is not None
    for name in ("no such constant", "task_struct", ""):
        assert plain.constant(name) is quick.constant(name) is None


@pytest.mark.parametrize("what", ["btf.starts", "btf.names", "btf.constants"])
def test_what_an_index_says_of_types_makes_no_sense(what: str) -> None:
    parts = dict(unpack(memoryview(made(NAMES[-1]))))
    parts[what] = memoryview(b"odd")
    with opened(NAMES[-1], pack(parts)) as image:
        assert image.kernel.prog.type("struct task_struct").tag == "task_struct"
        assert image.kernel.prog.constant("PG_locked") == 0
        assert "types" not in image.kernel._served


def test_of_another_build_counts_for_nothing() -> None:
    with opened(NAMES[0]) as plain, opened(NAMES[0], made(NAMES[-1])) as image:
        assert list(image.processes(REQUEST)) == list(plain.processes(REQUEST))
        assert image.kernel._served == set()
        assert image.index_inputs() == plain.index_inputs() != b""


def test_two_dumps_of_one_build_have_one_index() -> None:
    """KASLR put these kernels at different places."""
    with opened("qemu/vmcore.kdump") as one, opened("kdump/vmcore.elfd") as other:
        assert one.build_id == other.build_id
        assert one.kernel.info.kaslr_offset != other.kernel.info.kaslr_offset
    assert made("qemu/vmcore.kdump") == made("kdump/vmcore.elfd")


def test_inputs_are_given_when_an_index_was_missed() -> None:
    with opened(NAMES[0]) as image:
        assert isinstance(image, Indexed)
        assert image.index_inputs() == b""
        image.kernel.need_types()
        assert len(image.index_inputs()) > 1 << 20
    with opened(NAMES[0], made(NAMES[0])) as image:
        image.kernel.need_types()
        assert image.kernel.symbol("jiffies") is not None
        assert image.index_inputs() == b""


@pytest.mark.parametrize("damage", [b"", b"\0" * 3, b"\xff" * 100, b"\1\0\0\0", bytes(1 << 16)])
def test_what_is_no_index_counts_for_nothing(damage: bytes) -> None:
    with opened(NAMES[0], damage) as image:
        assert image.kernel.symbol("jiffies") is not None
        assert len(list(image.processes(REQUEST))) > 10


def test_of_another_format_counts_for_nothing() -> None:
    whole = unpack(memoryview(made(NAMES[0])))
    for other in (b"0", b"11", b""):
        with opened(NAMES[0], pack({**whole, "format": other})) as image:
            list(image.processes(process_pb2.GetProcsRequest()))
            assert image.kernel._served == set()
            assert image.index_inputs() != b""  # and is replaced
    with pytest.raises(ValueError, match="format"):
        Index(memoryview(pack({name: part for name, part in whole.items() if name != "format"})))


def small_tables() -> tuple[RawKallsyms, bytes]:
    b = Builder()
    b.compound("one", 4, [("member", b.integer("int", 4), 0)])
    indexes = b"".join((2 * min(n, 8)).to_bytes(2, "little") for n in range(256))
    names = b"\2ab\1c\3bcd\0\0\0"
    return RawKallsyms(bytes(range(12)), names, b"a\0b\0c\0d\0e\0f\0g\0h\0i\0", indexes), b.bytes()


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_whoever_chooses_the_inputs_chooses_nothing_of_what_fits(data: st.DataObject) -> None:
    """A worker that was taken over may send any: an index that fits honest bytes is the one that is made of these."""
    raw, btf = small_tables()
    honest = unpack(memoryview(make(memoryview(inputs(raw, btf)))))
    given_parts = list(unpack(memoryview(inputs(raw, btf))).items())
    forged: dict[str, bytes] = {}
    for name, part in data.draw(st.permutations(given_parts)):
        names = st.sampled_from([name, name, f"kallsyms.{len(forged)}", "btf", "kallsyms.digest", "btf.names", ""])
        changed = bytearray(part)
        for at in data.draw(st.lists(st.integers(0, len(part) - 1), max_size=2)):
            changed[at] = data.draw(st.integers(0, 255))
        forged[data.draw(names)] = bytes(changed) + data.draw(st.sampled_from([b"", b"", b"\0", b"\0" * 4]))
    try:
        index = Index(memoryview(make(memoryview(pack(forged)))))
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA
        return
    for what, digest in (("btf", honest["btf.digest"]), ("kallsyms", honest["kallsyms.digest"])):
        if index._fits(what, bytes(digest)):
            mine = {name: bytes(part) for name, part in index._parts.items() if name.startswith(what)}
            assert mine == {name: bytes(part) for name, part in honest.items() if name.startswith(what)}


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_a_lying_index_never_gives_another_symbol(data: st.DataObject) -> None:
    """What a name may be hidden from, it may; but no address, size or type is wrong."""
    index = bytearray(made(NAMES[0]))
    whole = unpack(memoryview(bytes(index)))
    lied = data.draw(st.sampled_from(["kallsyms.places", "kallsyms.names", "btf.starts", "btf.names"]))
    changed = dict(whole)
    part = bytearray(whole[lied])
    for at in data.draw(st.lists(st.integers(0, len(part) // 4 - 1), min_size=1, max_size=2000)):
        part[4 * at : 4 * at + 4] = data.draw(st.binary(min_size=4, max_size=4))
    changed[lied] = memoryview(bytes(part))
    truth = _truth()
    with opened(NAMES[0], pack(changed)) as image:
        for name, (address, size) in truth.items():
            try:
                symbol = image.kernel.symbol(name)
                assert symbol is None or symbol.name == name
                kind = image.kernel.prog.type("struct task_struct")
                assert kind.tag == "task_struct"
            except KvmError as e:
                assert e.reason in (Reason.CORRUPT_DATA, Reason.NO_TYPES, Reason.NO_SYMBOLS)
            except LookupError:
                pass
            else:
                if symbol and lied.startswith("btf"):
                    assert (symbol.value, symbol.size) == (address, size)


@pytest.mark.parametrize("what", ["kallsyms.places", "kallsyms.names"])
def test_an_index_that_makes_no_sense_is_as_good_as_none(what: str) -> None:
    parts = dict(unpack(memoryview(made(NAMES[0]))))
    parts[what] = memoryview(b"\xff" * len(parts[what]))
    with opened(NAMES[0], pack(parts)) as image:
        for name, (address, _) in _truth().items():
            assert image.kernel.symbol(name).value == address
    del parts[what]
    with opened(NAMES[0], pack(parts)) as image:
        assert image.kernel.symbol("schedule").value == _truth()["schedule"][0]


@cache
def _truth() -> dict[str, tuple[int, int]]:
    with opened(NAMES[0]) as image:
        found = {
            name: image.kernel.symbol(name)
            for name in ("jiffies", "init_task", "schedule", "avenrun", "vmap_area_root")
        }
        return {name: (symbol.value, symbol.size) for name, symbol in found.items() if symbol}


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_inputs_of_any_bytes_are_refused_or_made(data: bytes) -> None:
    try:
        Index(memoryview(make(memoryview(data))))
    except KvmError as e:
        assert e.reason is Reason.CORRUPT_DATA


@given(
    st.binary(min_size=4, max_size=64).map(lambda b: b[: len(b) // 4 * 4]),
    st.binary(max_size=200),
    st.binary(max_size=300),
    st.binary(min_size=512, max_size=512),
)
@settings(deadline=None)
def test_tables_of_any_bytes_are_refused_or_made(offsets: bytes, names: bytes, tokens: bytes, indexes: bytes) -> None:
    raw = RawKallsyms(offsets, names, tokens, indexes)
    try:
        index = Index(memoryview(make(memoryview(inputs(raw, Builder().bytes())))))
        places = index.symbols(raw, 1 << 63)
    except (KvmError, ValueError) as e:
        assert not isinstance(e, KvmError) or e.reason is Reason.CORRUPT_DATA
        return
    assert places is None or all(0 <= s.address < 1 << 64 for s in places("_stext"))


@given(st.dictionaries(st.binary(max_size=12), st.integers(0, (1 << 32) - 1), max_size=60), st.binary(max_size=12))
def test_a_table_finds_its_names(numbers: dict[bytes, int], other: bytes) -> None:
    found = NameTable(memoryview(table(numbers.items())))
    for name, number in numbers.items():
        assert number in found.find(name)
    if other not in numbers:
        assert not set(found.find(other)) - {n for name, n in numbers.items() if name != other}


@given(st.dictionaries(st.text("abc.", min_size=1, max_size=24), st.binary(max_size=50), max_size=20))
def test_parts_come_back(given_parts: dict[str, bytes]) -> None:
    found = unpack(memoryview(pack(given_parts)))
    assert {name: bytes(part) for name, part in found.items()} == given_parts


@given(st.binary(max_size=200))
def test_any_bytes_are_parts_or_none(data: bytes) -> None:
    try:
        found = unpack(memoryview(data))
    except ValueError:
        return
    assert all(len(part) <= len(data) for part in found.values())


@pytest.mark.parametrize("starts", [[0, 1 << 30], [0, 0xFFFFFFFF], [0, 3], [0, 2]])
def test_types_that_an_index_puts_elsewhere_are_refused(starts: list[int]) -> None:
    b = Builder()
    b.compound("one", 4, [("member", b.integer("int", 4), 0)])
    names = NameTable(memoryview(table([(b"one", 1), (b"int", 1), (b"two", 9)])))
    lying = BtfIndex(starts, names, names)
    blob = Btf(b.bytes(), index=lying)
    for name in ("one", "int", "two", "no"):
        try:
            found = blob.find(name, Kind.STRUCT, Kind.INT)
            assert found is None or blob.record(found).name == name
        except KvmError as e:
            assert e.reason is Reason.CORRUPT_DATA


def test_the_three_ways_to_write_addresses() -> None:
    words = b"".join(n.to_bytes(4, "little", signed=True) for n in (16, -1, -101))
    absolute = addresses(RawKallsyms(words, b"", b"", b""), 1, 0xFFFFFFFF81000000)
    assert [absolute(n) for n in range(3)] == [16, 0xFFFFFFFF81000000, 0xFFFFFFFF81000064]
    words = b"".join(n.to_bytes(4, "little") for n in (0, 100, 0xF0000000))
    relative = addresses(RawKallsyms(words, b"", b"", b""), 1, 0xFFFFFFFF81000064)
    assert [relative(n) for n in range(3)] == [0xFFFFFFFF81000000, 0xFFFFFFFF81000064, 0x71000000]
    placed = addresses(RawKallsyms(words, b"", b"", b"", placed=True), 1, 0xFFFFFFFF81000064)
    assert [placed(n) for n in range(2)] == [0xFFFFFFFF81000064 - 104, 0xFFFFFFFF81000064]


def test_long_names_have_two_bytes_of_length() -> None:
    tokens = b"\0".join(bytes([n]) if 97 <= n < 123 else b"" for n in range(256)) + b"\0"
    starts, at = [], 0
    for n in range(256):
        starts.append(at)
        at += len(bytes([n]) if 97 <= n < 123 else b"") + 1
    indexes = b"".join(n.to_bytes(2, "little") for n in starts)
    name = b"t" + b"x" * 299
    raw = RawKallsyms(bytes(4), bytes([300 & 0x7F | 0x80, 300 >> 7]) + name + b"\0\0", tokens, indexes)
    entry = raw.entry(0)
    assert (entry.letter, entry.name, entry.end) == ("t", name[1:], 302)
    with pytest.raises(ValueError, match="no name"):
        raw.entry(1 << 20)
