"""/proc/iomem's parser, and reads and writes of /dev/mem with a sparse file in its place."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from drgn import FaultError
from hypothesis import example, given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.images.base import File
from kvmd.images.linux.live_devmem import DevMem, Ram, ram
from kvmd.images.linux.live_write import Writer
from kvmd.images.linux.pagetable import PageTables
from kvmd.images.linux.paging_x86 import X86Paging

IOMEM = b"""\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000bffff : PCI Bus 0000:00
00100000-02ffffff : System RAM
  01000000-01ffffff : Kernel code
fec00000-fec003ff : IOAPIC 0
100000000-13fffffff : Persistent Memory
  100000000-10fffffff : System RAM (kmem)
"""
RAM = [(0x1000, 0x9FC00), (0x100000, 0x3000000), (0x100000000, 0x110000000)]


class Machine:
    """A file in place of /dev/mem, and one in place of /proc/iomem."""

    def __init__(self, directory: Path) -> None:
        self.iomem = directory / "iomem"
        self.iomem.write_bytes(IOMEM)
        self.path = directory / "mem"
        with self.path.open("wb") as file:
            for address, data in ((0x1000, b"low"), (0x2FFFFFD, b"end"), (0x3000000, b"device"), (0x100000000, b"far")):
                file.seek(address)
                file.write(data)
            file.truncate(0x110000000)
        self.fds = [os.open(self.path, os.O_RDWR), os.open(self.iomem, os.O_RDONLY)]

    def open(self) -> DevMem:
        return DevMem(File(self.fds[0], "/dev/mem"), Ram(File(self.fds[1], "/proc/iomem"), None))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    for fd in made.fds:
        os.close(fd)


def test_ranges() -> None:
    assert [(r.start, r.end) for r in ram(IOMEM)] == RAM
    assert all(r.at == r.start for r in ram(IOMEM))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"00000000-00000000 : System RAM\n", "hides its addresses"),
        (b"00001000-00001fff : ACPI Tables\n", "lists no System RAM"),
        (b"00001000-00001fff : System RAMDISK\n", "lists no System RAM"),
        (b"", "lists no System RAM"),
    ],
)
def test_no_ranges(text: bytes, words: str) -> None:
    with pytest.raises(KvmError, match=words) as caught:
        ram(text)
    assert caught.value.reason is Reason.NO_LIVE_SOURCE


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(IOMEM.splitlines(keepends=True))), max_size=20))
@example([b"ffffffffffffffff-0 : System RAM\n", b"0-ffffffffffffffff : System RAM\n"])
def test_any_iomem(parts: list[bytes]) -> None:
    try:
        found = list(ram(b"".join(parts)))
    except KvmError as failure:
        assert failure.reason is Reason.NO_LIVE_SOURCE
        return
    assert all(0 <= r.start < r.end <= 1 << 56 for r in found)


def test_reads_of_ram(machine: Machine) -> None:
    mem = machine.open()
    assert mem.read(0x1000, 3, 0, True) == b"low"
    assert mem.read(0x100000000, 3, 0, True) == b"far"
    assert mem.trouble(0x3000000) is Reason.BEYOND_DUMP
    assert mem.trouble(0x2FFFFFF) is None


def test_devices_are_not_touched(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    mem = machine.open()
    touched: list[tuple[int, int]] = []
    pread = os.pread

    def watched(fd: int, length: int, offset: int) -> bytes:
        if fd == machine.fds[0]:
            touched.append((offset, offset + length))
        return pread(fd, length, offset)

    monkeypatch.setattr(os, "pread", watched)
    for address, length in ((0x2FFFFFD, 10), (0xFEC00000, 4), (0xA0000, 64), (0x9FB00, 4096), (0, 8)):
        with pytest.raises(FaultError):
            mem.read(address, length, 0, True)
    assert all(any(low <= start and end <= high for low, high in RAM) for start, end in touched)


def test_memory_that_comes_and_goes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmd.images.linux.live_devmem._FRESH", 0.0)
    mem = machine.open()
    machine.iomem.write_bytes(b"03000000-03ffffff : System RAM\n")
    assert mem.read(0x3000000, 6, 0, True) == b"device"
    with pytest.raises(FaultError):
        mem.read(0x1000, 1, 0, True)


def forbid(monkeypatch: pytest.MonkeyPatch, name: str, fd: int, number: int, above: int = 0) -> None:
    """Let a call on a descriptor fail at offsets above one."""
    call = getattr(os, name)

    def failing(target: int, what: Any, offset: int) -> Any:
        if target == fd and offset >= above:
            raise OSError(number, os.strerror(number))
        return call(target, what, offset)

    monkeypatch.setattr(os, name, failing)


def test_strict_devmem_is_found_at_the_open(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "pread", machine.fds[0], errno.EPERM, 1 << 20)
    with pytest.raises(KvmError, match=r"CONFIG_STRICT_DEVMEM.*/proc/kcore") as caught:
        machine.open()
    assert caught.value.reason is Reason.STRICT_DEVMEM


@pytest.mark.parametrize(("number", "kind"), [(errno.EFAULT, FaultError), (errno.EIO, KvmError)])
def test_other_failures(machine: Machine, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]) -> None:
    mem = machine.open()
    forbid(monkeypatch, "pread", machine.fds[0], number)
    with pytest.raises(kind):
        mem.read(0x1000, 1, 0, True)


VIRTUAL = 0xFFFF888000000000


class Tables:
    """Four levels of tables in the file at 16 MiB: pages from VIRTUAL on, by their physical addresses."""

    ROOT = 0x1000000

    def __init__(self, mem: DevMem, fd: int, pages: list[int]) -> None:
        for level in range(3):
            index = VIRTUAL >> (39 - 9 * level) & 511
            self._put(fd, self.ROOT + level * 4096 + index * 8, self.ROOT + (level + 1) * 4096 | 1)
        for number, page in enumerate(pages):
            self._put(fd, self.ROOT + 3 * 4096 + number * 8, page | 1)
        self._tables = PageTables(lambda address, length: mem.read(address, length, 0, True), X86Paging(4))

    @staticmethod
    def _put(fd: int, address: int, entry: int) -> None:
        os.pwrite(fd, struct.pack("<Q", entry), address)

    def translate(self, address: int) -> Any:
        return self._tables.translate(self.ROOT, address)


@pytest.fixture
def writer(machine: Machine) -> Writer:
    mem = machine.open()
    tables: Any = SimpleNamespace(translate=Tables(mem, machine.fds[0], [0x5000, 0x9000, 0xFEC00000]).translate)
    return Writer(File(machine.fds[0], "/dev/mem"), tables, mem)


def test_a_write_page_by_page(machine: Machine, writer: Writer) -> None:
    writer.write(VIRTUAL + 0xFFE, b"abcd")
    assert os.pread(machine.fds[0], 2, 0x5FFE) == b"ab"
    assert os.pread(machine.fds[0], 2, 0x9000) == b"cd"
    writer.write(VIRTUAL, b"")


@pytest.mark.parametrize(
    ("address", "length", "reason", "written"),
    [
        (VIRTUAL + 0x2000, 4, Reason.BEYOND_DUMP, 0),
        (VIRTUAL + 0x1FFC, 8, Reason.BEYOND_DUMP, 4),
        (VIRTUAL + 0x3000, 1, Reason.NOT_MAPPED, 0),
        (0x800000000000, 1, Reason.NOT_MAPPED, 0),
    ],
)
def test_what_is_not_written(writer: Writer, address: int, length: int, reason: Reason, written: int) -> None:
    with pytest.raises(KvmError) as caught:
        writer.write(address, b"x" * length)
    assert caught.value.reason is reason
    assert caught.value.address == address + written
    assert caught.value.metadata["written"] == str(written)


@pytest.mark.parametrize(("number", "reason"), [(errno.EPERM, Reason.STRICT_DEVMEM), (errno.EIO, Reason.SOURCE_IO)])
def test_refused_writes(
    machine: Machine, writer: Writer, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    forbid(monkeypatch, "pwrite", machine.fds[0], number)
    with pytest.raises(KvmError) as caught:
        writer.write(VIRTUAL, b"x")
    assert caught.value.reason is reason


@pytest.mark.parametrize(("address", "length"), [(-1, 1), (2**64 - 1, 2), (0, (1 << 20) + 1)])
def test_writes_that_make_no_sense(writer: Writer, address: int, length: int) -> None:
    with pytest.raises(KvmError) as caught:
        writer.write(address, b"x" * length)
    assert caught.value.reason is Reason.BAD_ARGUMENT
