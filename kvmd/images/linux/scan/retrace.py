"""VMCOREINFO made anew of kernels whose symbols tell of code alone, and of arm64: from page tables found by scanning.

Source: Linux kernel/vmcore_info.c and arch/*/kernel/vmcore_info.c (crash_core.c up to 6.8) for the lines;
include/linux/uts_namespace.h; arch/arm64/include/asm/memory.h for where the kernel is linked.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from kvmd.images.linux.pagetable import Paging
from kvmd.images.linux.paging_arm64 import Arm64Paging
from kvmd.images.linux.paging_x86 import KERNEL_MAP, X86Paging
from kvmd.images.linux.scan.kallsyms import Symbols
from kvmd.images.linux.scan.roots import Image, Root, roots
from kvmd.images.linux.scan.search import Read, at_most, search, window
from kvmd.images.linux.vmcoreinfo import release_of

_ALL = (1 << 64) - 1
_FIELD = 65  # __NEW_UTS_LEN + 1
_SYSNAME = b"Linux".ljust(_FIELD, b"\0")
_BANNER = re.compile(rb"Linux version (\S+) [^\n]*?(#[^\n]*)\n")
_UTS = 6 * _FIELD + 256  # of struct uts_namespace: the names, and what follows them up to ns.inum
_FIRST = b"\xfe\xff\xff\xef"  # PROC_UTS_INIT_INO (include/linux/proc_ns.h), the number of the first namespace
_KREF, _NO_KREF = 4, (5, 11)  # struct uts_namespace began with a counter, up to which release
BUILD_ID_NOTE = b"\4\0\0\0\x14\0\0\0\3\0\0\0GNU\0"  # of a build id: SHA-1, NT_GNU_BUILD_ID
_ID = 20
_VDSO = 16384  # the vDSOs are ELF files inside of the image, each on pages of its own, with build ids of their own
_PAGE = 4096
_MOST, _NAMES = 256, 8  # of each thing that is looked for in an image; and names that pointers are looked for to
_LINKED = KERNEL_MAP + (16 << 20)  # where x86's _text is linked: CONFIG_PHYSICAL_START's default
_LARGE_MODULES = (6, 5)  # since when there are 2 GiB for modules below arm64's kernel
_BPF_REGION = (5, 16)  # up to when there were 128 MiB more for BPF


class Layout(NamedTuple):
    """One layout of page tables, and the lines of VMCOREINFO that tell of it.

    :ivar lines: those that depend on the table that was found, too.
    :ivar linked: where the kernel of a release is linked.
    :ivar highest: the highest address at which all memory is mapped.
    """

    paging: Paging
    lines: Callable[[Root], list[bytes]]
    linked: Callable[[tuple[int, ...]], int]
    highest: int = _ALL

    def roots(self, read: Read, runs: Iterable[range], image: Image) -> Iterator[Root]:
        """Give what can be top-level tables of this layout."""
        found = roots(read, runs, image, self.paging)
        return (root for root in found if root.linear + root.physical & _ALL <= self.highest)


def _x86(levels: int) -> Layout:
    def lines(root: Root) -> list[bytes]:
        return [
            b"NUMBER(phys_base)=%d" % (KERNEL_MAP - root.distance),
            b"NUMBER(pgtable_l5_enabled)=%d" % (levels == 5),
            # NR_SECTION_ROOTS with 4 and 5 levels, where struct mem_section has 16 bytes
            b"LENGTH(mem_section)=%d" % (131072 if levels == 5 else 2048),
        ]

    return Layout(X86Paging(levels), lines, lambda _: _LINKED)


def _arm64(shift: int, bits: int, used: int) -> Layout:
    wide = used == 52 or shift == 16
    paging = Arm64Paging(shift, bits, used, wide=wide)
    least = min(bits, 47 if shift == 14 else 48) if bits == 52 else bits  # VA_BITS_MIN

    def lines(root: Root) -> list[bytes]:
        return [
            b"NUMBER(VA_BITS)=%d" % bits,
            b"NUMBER(kimage_voffset)=0x%x" % root.distance,
            b"NUMBER(PHYS_OFFSET)=0x%x" % (paging.base - root.linear & _ALL),
            b"NUMBER(TCR_EL1_T1SZ)=0x%x" % (64 - used),
            # Of a CPU without pointer authentication 0, but these bits of the kernel's addresses are ones anyway.
            b"NUMBER(KERNELPACMASK)=0x%x" % (-1 << used & _ALL),
            # NR_SECTION_ROOTS where memory has 48 bits, in sections of 1 GiB (up to 5.11): others have more of them.
            b"LENGTH(mem_section)=%d" % ((1 << 48 - 30) // (paging.page_size // 16)),
            *([b"NUMBER(MAX_PHYSMEM_BITS)=52"] if wide else []),
        ]

    def linked(release: tuple[int, ...]) -> int:
        modules = (2 << 30) if release >= _LARGE_MODULES else (128 << 20) * (1 + (release < _BPF_REGION))
        return (1 << 64) - (1 << least - 1) + modules

    # With pages of 64 KiB, tables for 52 bits look the same on a CPU of 48, but for where they map memory.
    return Layout(paging, lines, linked, -1 << 48 & _ALL if shift == 16 and used == 52 else _ALL)


# A function of each architecture's, whatever its release and configuration; and how its page tables can be.
LAYOUTS = {
    b"secondary_startup_64": (_x86(4), _x86(5)),
    b"vectors": (
        *(_arm64(12, bits, bits) for bits in (39, 48, 52)),
        *(_arm64(14, bits, bits) for bits in (36, 47, 48, 52)),
        *(_arm64(16, *bits) for bits in ((42, 42), (48, 48), (52, 48), (52, 52))),
    ),
}


def texts(read: Read, near: Iterable[range], symbols: Symbols, banners: Iterable[int]) -> Iterator[bytes]:
    """Give what VMCOREINFO would say of the kernels that some symbols could be of.

    :param read: reads physical memory.
    :param near: the memory that a kernel's image can lie in that has these symbols in it.
    :param banners: physical addresses at which there is a banner, of this kernel or anyone.
    """
    stext, etext = symbols.address(b"_stext"), symbols.address(b"_etext")
    if stext is None or etext is None:
        return
    runs, image = tuple(near), Image(stext, etext, symbols.place)
    for layout in next((found for name, found in LAYOUTS.items() if symbols.address(name) is not None), ()):
        for root in layout.roots(read, runs, image):
            seen = _Seen(read, runs, root)
            yield from (_text(seen, layout, symbols, name) for name in _names(seen, banners))


class _Seen(NamedTuple):
    """The image of a root that was found, and what it is searched with."""

    read: Read
    near: tuple[range, ...]
    root: Root

    def find(self, wanted: bytes) -> Iterator[int]:
        """Give the physical addresses of the image at which bytes stand."""
        places = (place for _, place in search(self.read, self.near, (wanted,), _PAGE))
        return at_most(_MOST, filter(self.root.maps, places), "things that a kernel has one of")

    def at(self, place: int, length: int) -> bytes:
        """The bytes at a physical address, with zeroes for those that can't be read."""
        return window(self.read, place, place + length, 1)


class _Name(NamedTuple):
    """A struct uts_namespace: its virtual address, where in it the names are, and the release among them."""

    address: int
    offset: int
    release: bytes

    @property
    def number(self) -> tuple[int, ...]:
        """The release as a number."""
        return release_of(self.release.decode("ascii", "replace"))


def _names(seen: _Seen, banners: Iterable[int]) -> Iterator[_Name]:
    """Give what can be init_uts_ns: it is numbered so, says what the image's banner says, and something points to it.

    Since 6.1 nothing points to one of two (init/version.c, init/version-timestamp.c).
    """
    told: set[tuple[bytes, bytes]] = set()
    for banner in filter(seen.root.maps, banners):
        match = _BANNER.match(seen.at(banner, 512))
        told.update([(match[1], match[2])] if match else [])
    for name in at_most(_NAMES, _told(seen, told), "names of the kernel"):
        if any(at % 8 == 0 for at in seen.find(name.address.to_bytes(8, "little"))):  # init_nsproxy has its address
            yield name


def _told(seen: _Seen, told: set[tuple[bytes, bytes]]) -> Iterator[_Name]:
    """Give those that say one of some releases and versions."""
    for place in seen.find(_SYSNAME):
        fields = seen.at(place, _UTS)
        release, version = (fields[at : at + _FIELD].split(b"\0")[0] for at in (2 * _FIELD, 3 * _FIELD))
        if (release, version) in told and _FIRST in fields[6 * _FIELD :]:
            offset = _KREF if release_of(release.decode("ascii", "replace")) < _NO_KREF else 0
            yield _Name(place - offset + seen.root.distance & _ALL, offset, release)


def _text(seen: _Seen, layout: Layout, symbols: Symbols, name: _Name) -> bytes:
    """The lines."""
    root = seen.root
    # _text itself is no function, and _stext follows within 64 KiB.
    text = symbols.address(b"_text") or root.image.stext & -(2 << 20)
    lines = [
        b"OSRELEASE=" + name.release,
        *_build_id(seen),
        b"PAGESIZE=%d" % layout.paging.page_size,
        b"SYMBOL(init_uts_ns)=%x" % name.address,
        b"OFFSET(uts_namespace.name)=%d" % name.offset,
        b"SYMBOL(swapper_pg_dir)=%x" % (root.physical + root.distance & _ALL),
        b"SYMBOL(_stext)=%x" % root.image.stext,
        *layout.lines(root),
        b"KERNELOFFSET=%x" % (text - layout.linked(name.number) & _ALL),
    ]
    return b"\n".join(lines) + b"\n"


def _build_id(seen: _Seen) -> Iterator[bytes]:
    """The kernel's build id, if the image holds but one that is of no vDSO."""
    places = [place for place in seen.find(BUILD_ID_NOTE) if not _in_file(seen, place)]
    if len(places) == 1:
        yield b"BUILD-ID=" + seen.at(places[0] + len(BUILD_ID_NOTE), _ID).hex().encode()


def _in_file(seen: _Seen, place: int) -> bool:
    return any(seen.at(at, 4) == b"\x7fELF" for at in range(place & -_PAGE, place - _VDSO, -_PAGE))
