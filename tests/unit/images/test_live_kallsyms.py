"""The parser of /proc/kallsyms, and when it is read again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from images import unpack
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File
from kvmd.images.linux import live_files, live_kallsyms
from kvmd.images.linux.live_kallsyms import LiveKallsyms, Table, Text
from kvmd.images.linux.live_modules import ModuleList
from kvmd.images.linux.symbols import _BOUNDS, N_BSS, N_DATA, N_EXT, N_TEXT

TEXT = b"""\
0000000000000000 A fixed_percpu_data
0000000000001000 A cpu_debug_store
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000100 t twice
ffffffff81000200 T twice
ffffffff81000300 W weak_code
ffffffff81001000 T _etext
ffffffff81002000 D jiffies
ffffffff81003000 B __bss_start
ffffffff81003010 b counter
ffffffff81004000 B _end
ffffffffc0000000 t init_module\t[first]
ffffffffc0000100 T shared\t[first]
ffffffffc0001000 t shared\t[second]
ffffffffc0001100 b zeroes\t[second]
ffffffffc0002000 t bpf_prog_6deef7357e7b4530\t[bpf]
"""


class Place:
    """A file that is written anew, and a list of modules that changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: object = 0
        self.write(TEXT)
        self.fd = os.open(path, os.O_RDONLY)
        self.reads = 0

    def write(self, text: bytes) -> None:
        self.path.write_bytes(text)

    def modules(self) -> object:
        self.reads += 1
        return self.state

    def table(self) -> LiveKallsyms:
        return LiveKallsyms(File(self.fd, "/proc/kallsyms"), self.modules)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path / "kallsyms")
    yield made
    os.close(made.fd)


def test_symbols_of_the_kernel(place: Place) -> None:
    table = place.table()
    found = {name: table(name) for name in ("_text", "twice", "weak_code", "jiffies", "counter", "init_module")}
    assert found.pop("init_module") is None
    rows = {name: (symbol.value & 0xFFFF, symbol.size, symbol.n_type) for name, symbol in found.items() if symbol}
    assert rows == {
        "_text": (0, 0x100, N_TEXT | N_EXT),
        "twice": (0x200, 0x100, N_TEXT | N_EXT),  # the global one
        "weak_code": (0x300, 0xD00, N_TEXT | N_EXT),
        "jiffies": (0x2000, 0x1000, N_DATA | N_EXT),
        "counter": (0x3010, 0xFF0, N_BSS),
    }


def test_symbols_of_modules(place: Place) -> None:
    table = place.table()
    found = [table.module(name) for name in ("init_module", "shared", "zeroes", "_text")]
    rows = [symbol and (symbol.value & 0xFFFF, symbol.n_type, symbol.module) for symbol in found]
    assert rows == [(0, N_TEXT, "first"), (0x100, N_TEXT | N_EXT, "first"), (0x1100, N_BSS, "second"), None]


def test_the_symbol_that_holds_an_address(place: Place) -> None:
    table = place.table()
    assert [s.name for s in table.at(0xFFFFFFFF81002008)] == ["jiffies"]
    assert table.at(0xFFFFFFFF80000000) == []
    assert table.at(8) == []


def test_a_module_that_comes_and_one_that_goes(place: Place) -> None:
    table = place.table()
    assert table.module("late") is None
    place.write(TEXT.replace(b"zeroes", b"late"))
    assert table.module("late") is None  # nothing says that the file has changed
    place.state = 1
    assert table.module("late") is not None
    assert table.module("zeroes") is None


def test_a_file_that_changes_while_it_is_read(place: Place) -> None:
    place.modules = object  # type: ignore[method-assign]
    table = place.table()
    assert table.module("zeroes") is not None


def test_what_is_no_module_is_looked_for_again_after_a_while(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    table = place.table()
    assert table.module("bpf_prog_new") is None
    place.write(TEXT + b"ffffffffc0003000 t bpf_prog_new\t[bpf]\n")
    monkeypatch.setattr("kvmd.images.linux.live_kallsyms._PATIENCE", -1.0)
    assert table.module("bpf_prog_new") is not None


def test_a_batch_looks_at_the_modules_once(place: Place) -> None:
    table = place.table()
    for _ in range(2):
        with table.batch():
            assert table("jiffies") is not None
            before = place.reads  # what is the kernel's own needs no look at all
            assert table.module("shared") is not None
            once = place.reads
            assert [table.module(name) is not None for name in ("zeroes", "nothing")] == [True, False]
            assert before < once == place.reads


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"", "empty"), (b"nonsense\n", "empty"), (b"0000000000000000 T _text\n0000000000000000 t x\n", "kptr_restrict")],
)
def test_nothing_to_be_found(place: Place, text: bytes, words: str) -> None:
    place.write(text)
    with pytest.raises(KvmError, match=words) as caught:
        place.table()("_text")
    assert caught.value.reason is Reason.NO_SYMBOLS


lines = st.builds(
    lambda address, letter, name, module: f"{address:016x} {letter} {name}{module}\n".encode(),
    st.integers(0, 2**64 - 1),
    st.characters(min_codepoint=33, max_codepoint=126),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9),
    st.sampled_from(["", "\t[mod]"]),
)


@given(st.lists(st.one_of(lines, st.binary(max_size=40)), max_size=30))
@example([b"\xff" * 16 + b" T x\n"])
def test_any_bytes(parts: list[bytes]) -> None:
    try:
        table = Text([b"".join(parts)]).table
    except KvmError as failure:
        assert failure.reason is Reason.NO_SYMBOLS
        return
    for address, letter, _ in (table.kernel | table.modules).values():
        assert 0 <= address < 2**64
        assert len(letter) == 1
        assert table.size(address) >= 0
        table.holder(address)


@given(st.lists(lines, min_size=1, max_size=30))
def test_every_line_is_found(parts: list[bytes]) -> None:
    if all(int(line[:16], 16) == 0 for line in parts):
        return
    table = Table(b"".join(parts))
    for line in parts:
        rows = table.modules if b"\t" in line else table.kernel
        assert line[19:].split(b"\t")[0].rstrip(b"\n") in rows


def pieces(text: bytes, size: int) -> list[bytes]:
    """Of whole lines."""
    made, lines = [b""], text.splitlines(keepends=True)
    for line in lines:
        if len(made[-1]) >= size:
            made.append(b"")
        made[-1] += line
    return made


@pytest.mark.parametrize("size", [1 << 16, 1 << 30])
@pytest.mark.parametrize("late", [False, True], ids=["in order", "a name once more"])
def test_the_first_few_are_found_as_all_are(monkeypatch: pytest.MonkeyPatch, late: bool, size: int) -> None:
    """Of each name, what a search of the text finds is what the table of all has."""
    text = unpack("qemu", "kallsyms").read_bytes() + b"ffffffffc0000000 t linux_banner\t[mod]\n"
    if late:  # after the static one a global one, which counts
        static = next(line for line in text.splitlines() if b" t " in line)
        last = b"fffffffffffffff0 %b\n"
        text = text.replace(b"ffffffffc0000000", last % static[17:].replace(b"t ", b"T ", 1) + b"ffffffffc0000000")
    table = Table(text)
    names = random.Random(7).sample(sorted(table.kernel), 500)
    names += [
        b"linux_banner",
        static.split()[2] if late else b"_end",
        b"no such",
        b"a\nb",
        b"",
        b"[mod]",
        b"linux_banner\t[mod]",
    ]
    monkeypatch.setattr("kvmd.images.linux.live_kallsyms._FEW", len(names))
    sought = Text(pieces(text, size))
    for name in names:
        row = table.kernel.get(name)
        assert sought.kernel(name) == ((row, table.size(row[0])) if row else None), name
    assert "table" not in vars(sought)
    sought.kernel(b"_text")
    assert "table" in vars(sought)


def test_no_more_is_read_than_a_symbol_takes() -> None:
    text = unpack("qemu", "kallsyms").read_bytes()
    taken: list[bytes] = []

    def given() -> Iterator[bytes]:
        for piece in pieces(text, 1 << 14):
            taken.append(piece)
            yield piece

    sought = Text(given())
    assert sought.kernel(b"_text")
    assert len(taken) <= 2
    before = len(taken)
    assert sought.kernel(b"linux_banner")
    assert before < len(taken) < len(pieces(text, 1 << 14))
    assert sought.kernel(b"no such") is None
    assert b"".join(taken) == text


def test_what_a_symbol_is_does_not_depend_on_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 symbols and all next to the bounds of sections: first of all names, and when all has been read."""
    path = unpack("qemu", "kallsyms")
    rows = [line.split() for line in path.read_bytes().splitlines() if b"\t" not in line]
    monkeypatch.setattr("kvmd.images.linux.live_kallsyms._AT_ONCE", 1 << 12)
    near = {at + n for at, row in enumerate(rows) if row[2].decode() in _BOUNDS for n in range(-3, 4)}
    names = {rows[at][2].decode() for at in [*near, *random.Random(7).sample(range(len(rows)), 200)] if at < len(rows)}
    fd = os.open(path, os.O_RDONLY)
    try:
        whole = LiveKallsyms(File(fd, "kallsyms"), lambda: None)
        assert whole("no such") is None
        for name in names:
            assert LiveKallsyms(File(fd, "kallsyms"), lambda: None)(name) == whole(name)
    finally:
        os.close(fd)


def test_a_bound_that_comes_late() -> None:
    """A static one of its name is not it while a global one may come."""
    text = Text([b"%016x t __bss_start\n" % 0x1000, b"%016x B __bss_start\n" % 0x2000, b"%016x B _end\n" % 0x3000])
    assert text.bound("_end") == 1 << 64
    assert text.known == 1
    assert text.bound("__bss_start") == 0x2000
    assert text.bound("_etext") == 1 << 64
    assert text.bound("_end") == 1 << 64
    assert text.kernel(b"_end")
    assert text.bound("_end") == 0x3000
    assert text.kernel(b"no such") is None
    assert text.bound("_etext") == 0


def test_a_reading_that_fails_halfway_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not read of it isn't taken for what is not there."""
    pieces = [b"%016x T first\n" % 0x1000, b"%016x T second\n" % 0x2000]
    failures = [KvmError(Reason.SOURCE_IO, "no memory")]

    def read(*_: object) -> Iterator[bytes]:
        yield pieces[0]
        if failures:
            raise failures.pop()
        yield pieces[1]

    monkeypatch.setattr(live_kallsyms, "lines", read)
    table = LiveKallsyms(File(-1, "kallsyms"), lambda: None)
    with pytest.raises(KvmError, match="no memory"):
        table("second")
    found = table("second")
    assert found is not None
    assert found.value == 0x2000


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 200))
def test_pieces_are_of_whole_lines(parts: list[bytes], most: int) -> None:
    text = b"\n".join(parts)
    with TemporaryFile() as file:
        file.write(text)
        file.flush()
        found = list(live_files.lines(File(file.fileno(), "text"), 1 << 20, most))
    assert b"".join(found) == text
    assert all(piece.endswith(b"\n") for piece in found[:-1])
    assert all(found)


def test_the_same_as_the_table_in_a_dump(qemu: Any) -> None:
    """The fixture's dump and its kallsyms are of one boot."""
    path = unpack("qemu", "kallsyms")
    fd = os.open(path, os.O_RDONLY)
    try:
        table = LiveKallsyms(File(fd, "kallsyms"), lambda: None)
        names = {line.split()[2].decode() for line in path.read_bytes().splitlines() if b"\t" not in line}
        assert len(names) > 25000
        for name in sorted(names):
            found, wanted = table(name), qemu.image.kernel.builtin(name)
            assert found is not None
            # At the bounds of sections drgn gives no size.
            assert wanted == (found if wanted.size else found._replace(size=0))
    finally:
        os.close(fd)


class TestModuleList:
    """A list of two modules in a dictionary."""

    HEAD, FIRST, SECOND = 0x1000, 0x2008, 0x3008

    def memory(self) -> dict[int, bytes]:
        def node(following: int, before: int, name: bytes) -> bytes:
            return following.to_bytes(8, "little") + before.to_bytes(8, "little") + name.ljust(56, b"\0")

        return {
            self.HEAD: node(self.FIRST, self.SECOND, b""),
            self.FIRST: node(self.SECOND, self.HEAD, b"first"),
            self.SECOND: node(self.HEAD, self.FIRST, b"second"),
        }

    def state(self, memory: dict[int, bytes]) -> object:
        def read(address: int, length: int) -> bytes:
            if address not in memory:
                raise KvmError(Reason.NOT_MAPPED, "no")
            return memory[address][:length]

        return ModuleList(read, lambda: self.HEAD).state()

    def test_the_same_and_another(self) -> None:
        memory = self.memory()
        assert self.state(memory) == self.state(self.memory())
        memory[self.FIRST] = memory[self.FIRST].replace(b"first", b"other")
        assert self.state(memory) != self.state(self.memory())

    def test_broken_lists_equal_nothing(self) -> None:
        circle = self.memory()
        circle[self.SECOND] = circle[self.FIRST]
        cut = self.memory()
        del cut[self.SECOND]
        for memory in (circle, cut):
            assert self.state(memory) != self.state(memory)

    def test_a_kernel_without_modules(self) -> None:
        nothing = ModuleList(lambda address, length: b"", lambda: None)
        assert nothing.state() == nothing.state()
