"""A dump one of whose processes has 64 MiB in a swap area: a shipped dump, with more page tables and a larger image."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.dumps import unpacked
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.swap.entry import LAYOUTS
from kvmd.images.registry import open_image

PAGE = 4096
SIZE = 64 << 20
_FOLDER = "swap-6.1"
_FIRST_SLOT = 1 << 14  # below are slots that the dump's own processes use
_ADDRESS = 1 << 44  # where nothing is mapped in any process
_TABLES = 23000 * PAGE  # a physical address in a gap of the dump
_STATUS, _NOTES = 0x1A8, (32, 48)  # offsets in the header and the sub-header
_TABLE = 0x67  # _PAGE_TABLE of arch/x86/include/asm/pgtable_types.h


class Swapped(NamedTuple):
    """A dump, its swap image, and the memory in it: of a process, from an address on, in these slots."""

    dump: Path
    swap: Path
    pid: int
    address: int
    slots: Sequence[int]


def swapped(folder: Path, *, shuffled: bool) -> Swapped:
    """Make the dump and the image.

    :param shuffled: whether no two pages in turn lie in slots in turn.
    """
    slots = list(range(_FIRST_SLOT, _FIRST_SLOT + SIZE // PAGE))
    if shuffled:
        random.Random(1).shuffle(slots)
    source, dump, swap = unpacked(f"{_FOLDER}/vmcore.kdump"), folder / "vmcore", folder / "swap.img"
    swap.write_bytes(
        unpacked(f"{_FOLDER}/swap.img").read_bytes()[: _FIRST_SLOT * PAGE] + random.Random(2).randbytes(SIZE)
    )
    pid, root = _process(source)
    _more(source, dump, _tables(slots), (root + (_ADDRESS >> 39) * 8, _TABLES | _TABLE))
    return Swapped(dump, swap, pid, _ADDRESS, slots)


def _process(source: Path) -> tuple[int, int]:
    """A process, and the physical address of its top-level page table."""
    fd = os.open(source, os.O_RDONLY)
    image = open_image(Files(File(fd, source.name)))
    assert isinstance(image, LinuxImage)
    kernel = image.kernel
    for process in kernel.prog.threads():
        mm = process.object.mm
        if mm.value_() and process.object.comm.string_() == b"python3":
            return process.tid, kernel.memory.translate(mm.pgd.value_()).physical
    raise LookupError("the dump has no such process")


def _tables(slots: Sequence[int]) -> bytes:
    """Page tables of three levels, from the second highest down, with the entries of area 0's slots."""
    layout = LAYOUTS["x86_64"][0][1]
    entries = struct.pack(f"<{len(slots)}Q", *(layout.encode(0, slot) for slot in slots))
    leaves = range(_TABLES + 2 * PAGE, _TABLES + 2 * PAGE + len(entries), PAGE)
    middle = struct.pack(f"<{len(leaves)}Q", *(leaf | _TABLE for leaf in leaves))
    upper = struct.pack("<Q", _TABLES + PAGE | _TABLE)
    return upper.ljust(PAGE, b"\0") + middle.ljust(PAGE, b"\0") + entries


def _more(source: Path, target: Path, tables: bytes, word: tuple[int, int]) -> None:
    """Copy a KDUMP file whose pages are not compressed, with more pages in a gap of it, and another word.

    Layout: makedumpfile's diskdump_mod.h, version 1.7.2 (struct disk_dump_header, kdump_sub_header, page_desc).
    """
    old = source.read_bytes()
    _, block, sub, blocks = struct.unpack_from("<Iiii", old, _STATUS)
    bitmap, table = (1 + sub) * block + blocks * block // 2, (1 + sub + blocks) * block
    bits = bytearray(old[bitmap:table])
    present = [at * 8 + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1]
    rows = struct.iter_unpack("<QIIQ", old[table : table + 24 * len(present)])
    pages = {number: old[offset : offset + size] for number, (offset, size, _, _) in zip(present, rows, strict=True)}
    address, value = word
    page = bytearray(pages[address // PAGE])
    struct.pack_into("<Q", page, address % PAGE, value)
    pages[address // PAGE] = bytes(page)
    for at in range(0, len(tables), PAGE):
        number = (_TABLES + at) // PAGE
        assert number not in pages
        pages[number] = tables[at : at + PAGE]
        bits[number // 8] |= 1 << number % 8
    head = bytearray(old[:bitmap])
    body = table + 24 * len(pages)
    for at in _NOTES:  # VMCOREINFO and the notes go between the table and the pages
        _offset, size = struct.unpack_from("<QQ", old, block + at)
        struct.pack_into("<Q", head, block + at, body)
        body += size
    tail = b"".join(_part(old, block + at) for at in _NOTES)
    places = range(body, body + PAGE * len(pages), PAGE)
    descriptors = b"".join(struct.pack("<QIIQ", place, PAGE, 0, 0) for place in places)
    target.write_bytes(bytes(head + bits) + descriptors + tail + b"".join(pages[number] for number in sorted(pages)))


def _part(old: bytes, at: int) -> bytes:
    offset, size = struct.unpack_from("<QQ", old, at)
    return old[offset : offset + size]
