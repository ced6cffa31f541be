"""/proc/kcore: the running kernel's memory as an ELF core that grows and shrinks with the machine.

Source: Linux fs/proc/kcore.c. Each range of virtual addresses is a LOAD segment. p_paddr is a physical address for
RAM (the direct mapping) and for the kernel's image, and all ones for vmalloc, modules and the memory map. The kernel
answers zeroes for what isn't mapped there, so that only RAM is read from it, by physical address; the rest goes
through the page tables, which know what is mapped. Pages of RAM that were taken out of the direct mapping (secret
memory, a hypervisor's private pages) do read as zeroes.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

from drgn import FaultError

from kvmd.errors import Reason, error
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.layout import PAGE
from kvmd.images.linux.live_ranges import Range, Ranges
from kvmd.images.linux.paging_x86 import KERNEL_MAP
from kvmd.images.linux.source import exact

_ROW = struct.Struct("<I4xQQQQQ8x")
_MAX_SEGMENTS = 1 << 14
_MAX_NOTES = 1 << 20
_NOWHERE = (1 << 64) - 1


class _Head(NamedTuple):
    """A /proc/kcore as a source of bytes: it has no size that means anything."""

    fd: int
    size: int = 1 << 63

    def read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self.fd, length, offset)
        except OSError as e:
            raise error(
                Reason.SOURCE_IO,
                f"/proc/kcore can't be read: {e.strerror}",
                errno=errno.errorcode.get(e.errno or 0, "EIO"),
            ) from e


class Headers(NamedTuple):
    """What the headers say.

    :ivar ram: where RAM lies in the file.
    :ivar direct: the same RAM as (virtual address, length, physical address): the kernel's direct mapping.
    :ivar vmcoreinfo: the note's text, empty before Linux 4.19.
    """

    machine: int
    ram: Ranges
    direct: tuple[tuple[int, int, int], ...]
    vmcoreinfo: bytes


def headers(fd: int) -> Headers:
    """Read the headers.

    :raises KvmError: CORRUPT_IMAGE, TRUNCATED_IMAGE, UNSUPPORTED_FORMAT, SOURCE_IO.
    """
    source = _Head(fd)
    head = elf.header(source)
    if head.type != elf.ET_CORE or head.phnum > _MAX_SEGMENTS:
        raise error(Reason.CORRUPT_IMAGE, "/proc/kcore is no core of a kernel")
    table = exact(source, head.phoff, head.phnum * _ROW.size, "the program headers")
    found = [elf.Segment(*row) for row in _ROW.iter_unpack(table)]
    loads = [s for s in found if s.type == elf.PT_LOAD and _is_ram(s)]
    ram = Ranges(Range(s.paddr, s.paddr + s.memsz, s.offset) for s in loads)
    if not len(ram):
        raise error(Reason.CORRUPT_IMAGE, "/proc/kcore shows no RAM")
    direct = tuple((s.vaddr, s.memsz, s.paddr) for s in loads)
    return Headers(head.machine, ram, direct, next(_vmcoreinfo(source, found), b""))


def _is_ram(segment: elf.Segment) -> bool:
    """Whether a segment is the direct mapping of RAM; the kernel's image lies higher on x86-64, and in RAM anyway."""
    if segment.paddr == _NOWHERE or not 0 < segment.memsz < 1 << 56 or segment.paddr >= 1 << 56:
        return False
    if segment.offset + segment.memsz >= 1 << 63 or segment.vaddr + segment.memsz > 1 << 64:
        return False
    return 1 << 63 <= segment.vaddr < KERNEL_MAP


def _vmcoreinfo(source: _Head, found: list[elf.Segment]) -> Iterator[bytes]:
    for segment in found:
        if segment.type == elf.PT_NOTE and segment.filesz <= _MAX_NOTES:
            for name, _, text in elf.notes(exact(source, segment.offset, segment.filesz, "the notes")):
                if name == b"VMCOREINFO":
                    yield text


class Kcore:
    """Physical memory by /proc/kcore, as a :class:`~kvmd.images.linux.layout.Layout`.

    :raises KvmError: as :func:`headers`.
    """

    page_size = PAGE
    format = "kcore"
    notes = b""

    def __init__(self, file: File) -> None:
        self._fd = file.fd
        self.headers = headers(file.fd)

    @property
    def vmcoreinfo(self) -> bytes:
        """The text of the note."""
        return self.headers.vmcoreinfo

    def _range(self, address: int) -> Range | None:
        found = self.headers.ram.find(address)
        if found is None:  # memory may have been added since
            self.headers = headers(self._fd)
            found = self.headers.ram.find(address)
        return found

    def trouble(self, address: int) -> Reason | None:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        return None if self._range(address) else Reason.BEYOND_DUMP

    def read(self, address: int, length: int, _offset: int, _physical: bool) -> bytes:
        """Read physical memory; the signature is that of drgn's memory segments.

        :raises drgn.FaultError: at the first byte that is no RAM.
        """
        found = self._range(address)
        if found is not None and address + length <= found.end:
            data = self._pread(address, length, found)
            if len(data) == length:
                return data
            raise FaultError("/proc/kcore ends here", address + len(data))
        parts: list[bytes] = []
        while length > 0:
            found = self._range(address)
            if found is None:
                raise FaultError("no RAM", address)
            part = self._pread(address, min(length, found.end - address), found)
            if not part:
                raise FaultError("/proc/kcore ends here", address)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return b"".join(parts)

    def _pread(self, address: int, length: int, place: Range) -> bytes:
        try:
            return os.pread(self._fd, length, place.at + address - place.start)
        except OSError as e:
            if e.errno == errno.EFAULT:  # a page with a hardware error
                raise FaultError("the kernel can't read the page", address) from e
            raise error(
                Reason.SOURCE_IO,
                f"/proc/kcore can't be read: {e.strerror}",
                errno=errno.errorcode.get(e.errno or 0, "EIO"),
            ) from e
