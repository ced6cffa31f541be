"""ELF64: headers, segments, notes, sections and symbols, with every count and offset bounded.

Source: the generic ABI's chapters "Object Files" and "Program Loading".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kvmd.errors import Reason, error
from kvmd.images.linux.order import BIG, LITTLE, Order
from kvmd.images.linux.source import Source, exact

MAGIC = b"\x7fELF"
ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
SHT_SYMTAB, SHT_NOTE, SHT_NOBITS = 2, 7, 8
_PN_XNUM = 0xFFFF
_MAX_SEGMENTS = 1 << 17
_MAX_NOTES = 64 << 20
_MAX_SECTION = 512 << 20


class Header(NamedTuple):
    """The ELF header; ``phnum`` already follows PN_XNUM's rule."""

    type: int
    machine: int
    phoff: int
    phnum: int
    shoff: int
    shnum: int
    shstrndx: int
    order: Order


class Segment(NamedTuple):
    """A program header."""

    type: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


class Section(NamedTuple):
    """A section header and its name."""

    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int


def header(source: Source) -> Header:
    """Read the header.

    :raises KvmError: TRUNCATED_IMAGE, UNSUPPORTED_FORMAT (32-bit), CORRUPT_IMAGE.
    """
    data = exact(source, 0, 64, "the ELF header")
    if data[:4] != MAGIC or data[4] not in (1, 2) or data[5] not in (1, 2):
        raise error(Reason.CORRUPT_IMAGE, "the ELF header makes no sense")
    if data[4] != 2:
        raise error(Reason.UNSUPPORTED_FORMAT, "only ELF64 is supported")
    order = LITTLE if data[5] == 1 else BIG
    kind, machine, _, _, phoff, shoff, _, _, phentsize, phnum, shentsize, shnum, shstrndx = struct.unpack_from(
        order + "HHIQQQIHHHHHH", data, 16
    )
    if phnum == _PN_XNUM and not shoff:
        raise error(Reason.CORRUPT_IMAGE, "the ELF header's count of program headers makes no sense")
    if phnum == _PN_XNUM or (shnum == 0 and shoff):
        first = exact(source, shoff, 64, "the first section header")
        size, link, info = struct.unpack_from(order + "32xQII", first)
        phnum = info if phnum == _PN_XNUM else phnum
        shnum = size if shnum == 0 else shnum
        shstrndx = link if shstrndx == _PN_XNUM else shstrndx
    if (phnum and phentsize != 56) or (shnum and shentsize != 64) or max(phnum, shnum) > _MAX_SEGMENTS:
        raise error(Reason.CORRUPT_IMAGE, "the ELF header's table sizes make no sense")
    return Header(kind, machine, phoff, phnum, shoff, shnum, shstrndx, order)


def segments(source: Source, head: Header) -> list[Segment]:
    """Read the program headers.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE if a LOAD or NOTE segment wraps around.
    """
    table = exact(source, head.phoff, head.phnum * 56, "the program headers")
    found = [Segment(kind, *rest) for kind, *rest in struct.iter_unpack(head.order + "I4xQQQQQ8x", table)]
    for segment in found:
        if segment.type not in (PT_LOAD, PT_NOTE):
            continue
        wraps = segment.offset + segment.filesz >= 1 << 63 or segment.paddr + segment.memsz > 1 << 64
        if wraps or (segment.type == PT_LOAD and segment.filesz > segment.memsz):
            raise error(Reason.CORRUPT_IMAGE, "a program header makes no sense")
    return found


def notes(data: bytes, order: Order = LITTLE) -> Iterator[tuple[bytes, int, bytes]]:
    """Walk notes: (name without NUL, type, descriptor), up to the first that doesn't fit."""
    at = 0
    while at + 12 <= len(data):
        name_size, desc_size, kind = struct.unpack_from(order + "III", data, at)
        name_at = at + 12
        desc_at = name_at + (name_size + 3 & ~3)
        if desc_at + desc_size > len(data):
            return
        yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[desc_at : desc_at + desc_size]
        at = desc_at + (desc_size + 3 & ~3)


def note_data(source: Source, found: list[Segment]) -> Iterator[bytes]:
    """Read the NOTE segments.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE if one is larger than 64 MiB.
    """
    for segment in found:
        if segment.type == PT_NOTE:
            if segment.filesz > _MAX_NOTES:
                raise error(Reason.CORRUPT_IMAGE, "the notes are too large")
            yield exact(source, segment.offset, segment.filesz, "the notes")


def sections(source: Source, head: Header) -> list[Section]:
    """Read the section headers and names.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """
    table = exact(source, head.shoff, head.shnum * 64, "the section headers")
    rows = list(struct.iter_unpack(head.order + "IIQQQQII16x", table))
    if not rows:
        return []
    if head.shstrndx >= len(rows):
        raise error(Reason.CORRUPT_IMAGE, "the section name table's index makes no sense")
    names = content(source, Section("", 0, 0, 0, rows[head.shstrndx][4], rows[head.shstrndx][5], 0))
    return [
        Section(c_string(names, name), kind, flags, address, offset, size, link)
        for name, kind, flags, address, offset, size, link, _ in rows
    ]


def content(source: Source, section: Section) -> bytes:
    """Read a section.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE if it is larger than 512 MiB.
    """
    if section.type == SHT_NOBITS:
        return b""
    if section.size > _MAX_SECTION:
        raise error(Reason.CORRUPT_IMAGE, f"section {section.name!r} is too large")
    return exact(source, section.offset, section.size, f"section {section.name!r}")


def c_string(table: bytes, offset: int) -> str:
    """Return the NUL-terminated string at an offset of a string table; empty if there is none."""
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", "replace") if offset < len(table) else ""
