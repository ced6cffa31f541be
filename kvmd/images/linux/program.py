"""A dump file becomes a drgn Program.

ELF dumps are read by kvmd itself: drgn gives zeroes for pages that were left out, and QEMU's virtual addresses are
physical ones. KDUMP goes to libkdumpfile, which is quick and knows every codec; but it maps the file, so that of a
cut file only the pages that are whole may reach it (:class:`_Guard`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import NamedTuple

from drgn import Architecture, FaultError, Platform, Program

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Unpack
from kvmd.images.linux import elf, elfcore, kdump, kdumppages, lime, raw
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.kdumpcodecs import unpack
from kvmd.images.linux.layout import DumpLayout, Layout
from kvmd.images.linux.order import BIG, LITTLE, order_of
from kvmd.images.linux.prime import prime
from kvmd.images.linux.source import FLAT_MAGIC, DumpSource, FileSource, FlatSource, Source
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

prime()

_ALL = (1 << 64) - 1
_REMEMBERED = 1 << 16  # pages that were found whole
# e_machine and utsname.machine of the 64-bit architectures that are known here; QEMU writes S390X.
ARCHITECTURES: dict[int | str, Architecture] = {
    62: Architecture.X86_64,
    183: Architecture.AARCH64,
    243: Architecture.RISCV64,
    22: Architecture.S390X,
    "x86_64": Architecture.X86_64,
    "aarch64": Architecture.AARCH64,
    "riscv64": Architecture.RISCV64,
    "s390x": Architecture.S390X,
    "S390X": Architecture.S390X,
}

_BIG = {LITTLE: "", BIG: " (big-endian)"}

PhysicalRead = Callable[[int, int, int, bool], bytes]
"""Reads (address, length, offset, physical) or raises FaultError, as drgn's memory segments do."""


class Dump(NamedTuple):
    """An opened dump, or the running kernel's memory behind the same face.

    :ivar live: whether memory changes while it is read.
    :ivar into: fills a buffer with physical memory, without drgn or a copy in between; None where there is no such way.
    """

    prog: Program
    layout: Layout
    vmcoreinfo: VmcoreInfo
    architecture: Architecture
    live: bool = False
    into: Callable[[int, memoryview], bool] | None = None


class _Guard:
    """Physical reads of a cut KDUMP file: only pages that the file holds whole reach libkdumpfile."""

    def __init__(self, prog: Program, layout: kdump.KdumpLayout) -> None:
        self._prog = prog
        self._layout = layout
        self._whole: set[int] = set()

    def _check(self, page: int) -> bool:
        if page not in self._whole:
            if self._layout.trouble(page):
                return False
            if len(self._whole) >= _REMEMBERED:
                self._whole.clear()
            self._whole.add(page)
        return True

    def read(self, address: int, length: int, _offset: int, _physical: bool) -> bytes:
        """Read physical memory; the signature is that of drgn's memory segments."""
        size = self._layout.page_size
        for page in range(address & -size, address + length, size):
            if not self._check(page):
                raise FaultError("the dump does not hold the page", max(page, address))
        data: bytes = self._prog.read(address, length, True)
        return data


def is_mine(source: Source) -> bool:
    """Whether the file begins as a dump that this package reads; an ELF file must be a core."""
    head = source.read(0, 18)
    if head.startswith((kdump.MAGIC, FLAT_MAGIC)):
        return True
    if head.startswith(lime.MAGIC):
        return True
    return head.startswith(elf.MAGIC) and (len(head) < 18 or head[16 + (head[5] == 2)] == elf.ET_CORE)


class Opened(NamedTuple):
    """A dump's file, its headers checked.

    :ivar make: opens it as the kernel that a VMCOREINFO text describes; raises KvmError CORRUPT_IMAGE if drgn can't
        use the text.
    """

    layout: DumpLayout
    make: Callable[[bytes], Dump]


def open_file(file: File, unpacker: Callable[[], Unpack] | None = None) -> Opened:
    """Check a dump's headers; the descriptor stays the caller's.

    :param unpacker: see :attr:`kvmd.images.base.Files.unpacker`.
    :raises KvmError: CORRUPT_IMAGE, TRUNCATED_IMAGE, SPLIT_IMAGE, UNSUPPORTED_FORMAT, SOURCE_IO.
    """
    plain = FileSource(file.fd)
    flat = plain.read(0, len(FLAT_MAGIC)) == FLAT_MAGIC
    try:
        source: DumpSource = FlatSource(plain) if flat else plain
        magic = source.read(0, 8)
        if magic == kdump.MAGIC:
            return _open_kdump(file, source, flat, unpacker or (lambda: unpack))
        if magic.startswith(elf.MAGIC):
            return _open_elf(source)
        if flat:
            raise error(Reason.CORRUPT_IMAGE, "a flattened dump of neither KDUMP nor ELF")
        return _open_segments(lime.LimeLayout(source) if magic.startswith(lime.MAGIC) else raw.RawLayout(source))
    except KvmError as e:
        e.metadata.setdefault("path", file.name)
        raise


def _told(info: VmcoreInfo, machine: str) -> Architecture | None:
    """The architecture by VMCOREINFO: QEMU leaves the machine empty, or writes ``Unknown`` (7.2's for arm64)."""
    if machine not in ("", "Unknown"):
        return None
    return _architecture(info)


def _program(platform: Architecture, text: bytes | None = None) -> Program:
    prog = Program(Platform(platform), vmcoreinfo=text) if text else Program(Platform(platform))
    prog.set_enabled_debug_info_finders([])  # nothing is looked up in a file system or on a network
    return prog


def custom(architecture: Architecture, layout: Layout, read: PhysicalRead, text: bytes, *, live: bool = False) -> Dump:
    """A Program whose physical memory is read by a function; virtual addresses go through the page tables.

    :param text: the kernel's VMCOREINFO.
    :raises KvmError: CORRUPT_IMAGE if drgn can't use the VMCOREINFO.
    """
    prog = _program(architecture)
    prog.add_memory_segment(0, _ALL, read, True)
    with guarded("the kernel's VMCOREINFO"):
        prog.set_linux_kernel_custom(text, live)
    return Dump(prog, layout, VmcoreInfo.parse(text), architecture, live)


def _open_elf(source: DumpSource) -> Opened:
    layout = elfcore.ElfLayout(source)
    architecture = ARCHITECTURES.get(layout.machine)
    if architecture is None or layout.order != order_of(Platform(architecture)):
        machine = f"{layout.machine}{_BIG[layout.order]}"
        raise error(Reason.UNSUPPORTED_FORMAT, f"a core dump of ELF machine {machine}, which is not supported")
    return Opened(layout, partial(_by_segments, layout, architecture))


def _open_segments(layout: lime.LimeLayout | raw.RawLayout) -> Opened:
    return Opened(layout, lambda text: _by_segments(layout, _architecture(VmcoreInfo.parse(text)), text))


def _by_segments(
    layout: elfcore.ElfLayout | lime.LimeLayout | raw.RawLayout, architecture: Architecture, text: bytes
) -> Dump:
    layout = copy(layout)
    layout.page_size = VmcoreInfo.parse(text).page_size  # which the file doesn't know if the text wasn't in it
    return custom(architecture, layout, layout.read, text)._replace(into=layout.read_into)


def _architecture(info: VmcoreInfo) -> Architecture:
    """The architecture by what VMCOREINFO tells (arch/*/kernel/crash_core*.c), where the format has no word of it."""
    if info.number("kimage_voffset") is not None:
        return Architecture.AARCH64
    if info.symbol("lowcore_ptr") is not None:
        return Architecture.S390X
    return Architecture.RISCV64 if info.number("va_kernel_pa_offset") is not None else Architecture.X86_64


def _open_kdump(file: File, source: Source, flat: bool, unpacker: Callable[[], Unpack]) -> Opened:
    layout = kdump.KdumpLayout(source)
    info = VmcoreInfo.parse(layout.vmcoreinfo)
    architecture = ARCHITECTURES.get(layout.machine) or _told(info, layout.machine)
    if architecture is None or layout.order != order_of(Platform(architecture)):
        message = f"a dump of a {layout.machine!r}{_BIG[layout.order]} machine, which is not supported"
        raise error(Reason.UNSUPPORTED_FORMAT, message)
    own = info.lines.get("PAGESIZE", str(layout.page_size))
    if own != str(layout.page_size):  # QEMU's of arm64: libkdumpfile counts in the kernel's pages, and finds none
        message = f"a dump in pages of {layout.page_size} bytes of a kernel whose pages have {own}"
        raise error(Reason.UNSUPPORTED_FORMAT, f"{message}; take an ELF dump instead")

    if architecture is Architecture.S390X and layout.guarded and not flat:
        # libkdumpfile reads the lowcore when it opens these (src/kdumpfile/s390x.c), before a guard could help.
        raise error(Reason.TRUNCATED_IMAGE, "the dump of an s390x kernel ends before its last page")

    def make(text: bytes) -> Dump:
        with guarded("the dump's headers"):
            prog = _program(architecture, None if layout.vmcoreinfo else text)
            prog.set_core_dump(os.dup(file.fd))  # which drgn closes
        into = kdumppages.PageReader(source, layout, unpacker()).read_into
        if layout.guarded and not flat:
            return custom(architecture, layout, _Guard(prog, layout).read, text)._replace(into=into)
        return Dump(prog, layout, VmcoreInfo.parse(text), architecture, into=into)

    return Opened(layout, make)
