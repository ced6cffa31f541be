"""VMCOREINFO of an image without one: what drgn needs of it, from kallsyms, the banner and the page tables. x86-64.

Source: Linux kernel/crash_core.c and arch/x86/kernel/crash_core_64.c for the lines; arch/x86/mm/init_64.c and
head_64.S: the kernel's image lies at phys_base in one piece, and ``init_top_pgt`` is its top table.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from kvmd.images.linux import elf
from kvmd.images.linux.paging_x86 import KERNEL_MAP
from kvmd.images.linux.scan.kallsyms import Symbols
from kvmd.images.linux.scan.search import Read, window

_ALL = (1 << 64) - 1
_HUGE = 2 << 20
_LINKED = KERNEL_MAP + (16 << 20)  # where _text is linked: CONFIG_PHYSICAL_START's default
_FRAME = ((1 << 52) - 1) & -_HUGE
_FIELD = 65  # __NEW_UTS_LEN + 1
_NOTES_MAX = 1 << 16
_NT_GNU_BUILD_ID = 3
_NEEDED = (b"linux_banner", b"_text", b"_stext", b"init_top_pgt", b"init_uts_ns")
_SECTION_ROOTS = (2048, 131072)  # NR_SECTION_ROOTS with 4 and 5 levels, where struct mem_section has 16 bytes


def told(symbols: Symbols) -> bool:
    """Whether some symbols are of such a kernel."""
    return all(symbols.address(name) is not None for name in _NEEDED)


def texts(read: Read, symbols: Symbols, banners: Iterable[int]) -> Iterator[bytes]:
    """Give what VMCOREINFO would say if the kernel of some symbols lay where a banner is.

    :param read: reads physical memory.
    :param banners: physical addresses at which there is a banner, of this kernel or anyone.
    """
    symbols = _virtual(read, symbols)
    banner = symbols.address(b"linux_banner") or 0
    for place in banners:
        base = banner - place & _ALL
        if base % _HUGE == 0:
            yield from _text(read, symbols, base)


def _virtual(read: Read, symbols: Symbols) -> Symbols:
    """Symbols whose values came relative to where the tables lie (7.0 and later), moved to where they are mapped."""
    text, top = symbols.address(b"_text"), symbols.address(b"init_top_pgt")
    if text is None or top is None or text >= KERNEL_MAP:
        return symbols
    table = top
    for slot in (511, 510):  # of 5 levels, three: the one between is full at its end, too
        table = _word(read, table + 8 * slot) & ((1 << 52) - 4096)
    entries = struct.unpack("<512Q", window(read, table, table + 4096, 4096))
    for number, entry in enumerate(entries):
        if entry & 1 and entry & _FRAME == text & -_HUGE:
            moved = KERNEL_MAP + number * _HUGE - (text & -_HUGE)
            return Symbols([value + moved & _ALL for value in symbols.values], symbols.names)
    return symbols


def _word(read: Read, at: int) -> int:
    return int.from_bytes(window(read, at, at + 8, 1), "little")


class _At:
    """Reads of the kernel's image by symbol.

    :param base: virtual less physical address of it.
    """

    def __init__(self, read: Read, symbols: Symbols, base: int) -> None:
        self._read, self._symbols, self._base = read, symbols, base

    def __call__(self, name: bytes, length: int) -> bytes:
        """The bytes at a symbol; zeroes where none can be read, and nothing if there is no such symbol."""
        value = self._symbols.address(name)
        if value is None:
            return b""
        place = value - self._base & _ALL
        return window(self._read, place, place + length, 1)

    def number(self, name: bytes, length: int) -> int:
        """The number at a symbol, 0 if there is none."""
        return int.from_bytes(self(name, length), "little")


def _text(read: Read, symbols: Symbols, base: int) -> Iterator[bytes]:
    """The lines; none if there is no name of a Linux kernel."""
    at = _At(read, symbols, base)
    uts = at(b"init_uts_ns", 512)
    name = uts.find(b"Linux".ljust(_FIELD, b"\0"))
    release = uts[name + 2 * _FIELD : name + 3 * _FIELD].split(b"\0")[0]
    if name < 0 or not release:
        return
    levels5 = at.number(b"__pgtable_l5_enabled", 4)
    where = {name: symbols.address(name) or 0 for name in (b"init_uts_ns", b"_stext", b"init_top_pgt", b"_text")}
    lines = [
        b"OSRELEASE=" + release,
        *_build_id(symbols, at),
        b"PAGESIZE=4096",
        b"SYMBOL(init_uts_ns)=%x" % where[b"init_uts_ns"],
        b"OFFSET(uts_namespace.name)=%d" % name,
        b"SYMBOL(swapper_pg_dir)=%x" % where[b"init_top_pgt"],
        b"SYMBOL(_stext)=%x" % where[b"_stext"],
        b"NUMBER(phys_base)=%d" % (KERNEL_MAP - base),
        b"NUMBER(pgtable_l5_enabled)=%d" % levels5,
        b"LENGTH(mem_section)=%d" % _SECTION_ROOTS[levels5 != 0],
        b"NUMBER(sme_mask)=%d" % at.number(b"sme_me_mask", 8),
        b"KERNELOFFSET=%x" % (where[b"_text"] - _LINKED & _ALL),
    ]
    yield b"\n".join(lines) + b"\n"


def _build_id(symbols: Symbols, at: _At) -> Iterator[bytes]:
    start, stop = symbols.address(b"__start_notes"), symbols.address(b"__stop_notes")
    length = min(max((stop or 0) - (start or 0), 0), _NOTES_MAX)
    for name, kind, data in elf.notes(at(b"__start_notes", length)):
        if name == b"GNU" and kind == _NT_GNU_BUILD_ID:
            yield b"BUILD-ID=" + data.hex().encode()
