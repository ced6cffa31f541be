"""A vmlinux as execfile: made by hand, with and without what it needs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.registry import open_image
from kvmd.v1 import process_pb2
from kvmd.v1 import symbol_pb2 as pb

LINKED = 0xFFFFFFFF81000000
Symbol = tuple[str, int, int, int, int]


def vmlinux(build_id: str, symbols: list[Symbol] | None, extra: list[tuple[str, int, int, int, bytes]] = ()) -> bytes:  # type: ignore[assignment]
    """An ELF file: symbols are (name, value, size, info, section); sections (name, type, flags, address, data)."""
    note = struct.pack("<III", 4, len(build_id) // 2, 3) + b"GNU\0" + bytes.fromhex(build_id)
    sections = [("", 0, 0, 0, b""), (".text", 1, 6, LINKED, b"\x90" * 64), (".data", 1, 3, LINKED + 4096, b"d" * 64)]
    sections += [(".bss", 8, 3, LINKED + 8192, b""), (".data..percpu", 1, 3, 0, b"p" * 16), (".notes", 7, 2, 0, note)]
    sections += list(extra)
    if symbols is not None:
        names, rows = b"\0", bytes(24)
        for name, value, size, info, section in symbols:
            rows += struct.pack("<IBBHQQ", len(names), info, 0, section, value, size)
            names += name.encode() + b"\0"
        sections += [(".symtab", 2, 0, 0, rows), (".strtab", 3, 0, 0, names)]
    table = b"\0" + b"\0".join(s[0].encode() for s in sections) + b"\0.shstrtab\0"
    sections.append((".shstrtab", 3, 0, 0, table))
    body, headers = b"", b""
    for index, (name, kind, flags, address, data) in enumerate(sections):
        at, link = 64 + len(body), index + 1 if kind == 2 else 0
        offset = table.index(name.encode() + b"\0") if name else 0
        headers += struct.pack("<IIQQQQIIQQ", offset, kind, flags, address, at, len(data), link, 0, 1, 0)
        body += data
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    counts = (64, 0, 0, 64, len(sections), len(sections) - 1)
    return ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 64 + len(body), 0, *counts) + body + headers


SYMBOLS = [
    ("startup", LINKED + 16, 8, 0x12, 1),
    ("local", LINKED + 32, 8, 0x02, 1),
    ("table", LINKED + 4096, 64, 0x11, 2),
    ("zeroes", LINKED + 8192, 32, 0x01, 3),
    ("per_cpu", 0x40, 8, 0x11, 4),
    ("absolute", 0x1234, 0, 0x10, 0xFFF1),
    ("undefined", 0, 0, 0x10, 0),
    ("strange", 1, 0, 0x10, 200),
]


class Opener:
    """Opens the qemu dump with an execfile of given bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fds: list[int] = []
        path, self.truth = fixture("qemu/vmcore.kdump")
        self.fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.build_id = self.image().kernel.info.build_id

    def image(self, data: bytes | None = None) -> Any:
        if data is None:
            return open_image(Files(File(self.fds[0], "vmcore")))
        path = self.folder / "vmlinux"
        path.write_bytes(data)
        self.fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return open_image(Files(File(self.fds[0], "vmcore"), File(self.fds[-1], "vmlinux")))

    def reason(self, data: bytes) -> Reason:
        with pytest.raises(KvmError) as caught:
            self.image(data)
        assert caught.value.metadata["path"] == "vmlinux"
        return caught.value.reason


@pytest.fixture
def opener(tmp_path: Path) -> Iterator[Opener]:
    made = Opener(tmp_path)
    yield made
    for fd in made.fds:
        os.close(fd)


def test_a_kernel_that_is_linked_elsewhere_is_refused(opener: Opener) -> None:
    """Its symbols would be off by the difference."""
    stext = opener.image().symbols(["_stext"])[0].value - opener.image().kernel.info.kaslr_offset

    def linked(at: int) -> bytes:
        return vmlinux(opener.build_id, [("_stext", at, 0, 0x10, 1)])

    assert opener.image(linked(stext)).symbols(["_stext"])[0].source == pb.SYMBOL_SOURCE_EXECFILE
    assert opener.reason(linked(stext + (2 << 20))) is Reason.EXEC_FOREIGN


def test_symbols_of_the_execfile_come_first(opener: Opener) -> None:
    image = opener.image(vmlinux(opener.build_id, SYMBOLS))
    kaslr = image.kernel.info.kaslr_offset
    names = [s[0] for s in SYMBOLS]
    found = {s.name: (s.value, s.n_type, s.size) for s in image.symbols(names) if s.found}
    assert found == {
        "startup": (LINKED + 16 + kaslr, 5, 8),
        "local": (LINKED + 32 + kaslr, 4, 8),
        "table": (LINKED + 4096 + kaslr, 7, 64),
        "zeroes": (LINKED + 8192 + kaslr, 8, 32),
        "per_cpu": (0x40, 3, 8),
        "absolute": (0x1234, 3, 0),
    }
    assert image.symbols(["table"])[0].source == pb.SYMBOL_SOURCE_EXECFILE
    assert image.kernel_name() == "vmlinux"
    assert image.info().symbols == "execfile"
    assert image.symbols(["init_task"])[0].source == pb.SYMBOL_SOURCE_KALLSYMS
    assert image.info().types == "btf"


def test_what_is_no_elf(opener: Opener) -> None:
    whole = vmlinux(opener.build_id, SYMBOLS)
    for data in (b"", b"#!/bin/sh\n" * 20, b"\x7fELF", whole[:100], whole[:-10]):
        assert opener.reason(data) is Reason.EXEC_NOT_ELF


def test_what_is_stripped(opener: Opener) -> None:
    """It opens, and the dump's own symbols serve all but lookups, which ask the file that was named."""
    for symbols in (None, []):
        image = opener.image(vmlinux(opener.build_id, symbols))
        with pytest.raises(KvmError) as caught:
            image.symbols(["init_task"])
        assert caught.value.reason is Reason.EXEC_STRIPPED
        assert image.kernel_name() == "vmlinux"
        assert image.info().symbols == "kallsyms"
        assert next(image.processes(process_pb2.GetProcsRequest())).pid == 1


def test_what_belongs_to_another_kernel(opener: Opener) -> None:
    assert opener.reason(vmlinux("00" * 20, SYMBOLS)) is Reason.EXEC_FOREIGN
    other = [(".rodata", 1, 2, LINKED, b"Linux version 5.4.0-other (x@y)\n\0")]
    assert opener.reason(vmlinux("", SYMBOLS, other)) is Reason.EXEC_FOREIGN
    assert opener.reason(vmlinux("", SYMBOLS)) is Reason.EXEC_FOREIGN


def test_without_build_id_the_banner_tells(opener: Opener) -> None:
    banner = opener.truth["banner"].encode() + b"\n\0"
    image = opener.image(vmlinux("", SYMBOLS, [(".rodata", 1, 2, LINKED, banner)]))
    assert image.symbols(["startup"])[0].found


SOURCE = "struct probe_me {int a : 3; long b;}; struct probe_me probe; int startup(void) {return probe.a;}"


@pytest.mark.skipif(shutil.which("cc") is None, reason="makes a file with DWARF by a C compiler")
def test_dwarf_gives_the_types(opener: Opener, tmp_path: Path) -> None:
    flags = ["-g", "-nostdlib", "-shared", "-fPIC", f"-Wl,--build-id=0x{opener.build_id}"]
    subprocess.run(["cc", *flags, "-x", "c", "-o", tmp_path / "dwarf", "-"], input=SOURCE.encode(), check=True)
    image = opener.image((tmp_path / "dwarf").read_bytes())
    assert image.info().types == "dwarf"
    assert image.kernel.prog.type("struct probe_me").members[1].name == "b"
    with pytest.raises(KvmError) as caught:  # this kernel's DWARF has no tasks
        list(image.processes(process_pb2.GetProcsRequest()))
    assert caught.value.reason is Reason.NO_TYPES


def test_broken_tables_are_no_crash(opener: Opener) -> None:
    whole = vmlinux(opener.build_id, SYMBOLS)
    for at in (40, 58, 60, 62):  # shoff, shentsize, shnum, shstrndx
        for value in (1, 0x7FFF, 0xFFFF):
            data = whole[:at] + struct.pack("<H", value) + whole[at + 2 :]
            try:
                opener.image(data)
            except KvmError as e:
                assert e.reason in (Reason.EXEC_NOT_ELF, Reason.EXEC_FOREIGN)
