"""FreeBSD minidumps made byte by byte, as the kernel writes them: M1 to M4 of the acceptance list A25 and A26."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bsd import LARGE_BIT, NO_EXECUTE, PAGE, PRESENT, WRITABLE, Memory, aligned, pattern


def rounded(data: bytes, size: int = PAGE) -> bytes:
    return aligned(data, size)


@dataclass
class Amd64Minidump:
    """A FreeBSD minidump of amd64, put together by :meth:`file`.

    :ivar pages: physical addresses of the pages that are in it.
    :ivar ranges: dump_avail, of version 3; None: as wide as there are pages.
    """

    memory: Memory
    pages: set[int]
    entries: Mapping[int, int]
    version: int = 3
    ranges: Sequence[tuple[int, int]] | None = None
    kernbase: int = 0xFFFFFFFF80000000
    dmapbase: int = 0xFFFFF80000000000
    dmapend: int = 0xFFFFF80000000000 + (1 << 30)
    msgbuf: bytes = b"<6>hello\n"
    map_entries: int = 512

    def ids(self) -> dict[int, int]:
        """Each dumped page's bit."""
        if self.version < 3 or self.ranges is None:
            return {page: page // PAGE for page in self.pages}
        found, base = {}, 0
        for start, end in self.ranges:
            first, last = start // PAGE, -(-end // PAGE)
            found |= {page: base + page // PAGE - first for page in self.pages if first <= page // PAGE < last}
            base += last - first
        return found

    def bitmap(self) -> bytes:
        ids = self.ids()
        bits = bytearray(-(-(max(ids.values(), default=0) + 1) // 64) * 8)
        for bit in ids.values():
            bits[bit // 8] |= 1 << bit % 8
        return bytes(bits)

    def parts(self) -> list[bytes]:
        ids, bits = self.ids(), self.bitmap()
        pmap = b"".join(struct.pack("<Q", self.entries.get(index, 0)) for index in range(self.map_entries))
        avail = b""
        if self.version >= 3:
            ranges = self.ranges if self.ranges is not None else [(0, len(bits) * 8 * PAGE)]
            avail = b"".join(struct.pack("<QQ", *each) for each in [*ranges, (0, 0)])
        head = b"minidump FreeBSD/amd64".ljust(24, b"\0")
        head += struct.pack("<IIII", self.version, len(self.msgbuf), len(bits), len(pmap))
        head += struct.pack("<QQQ", self.kernbase, self.dmapbase, self.dmapend)
        if self.version >= 3:
            head += struct.pack("<I", len(avail))
        pages = b"".join(self.memory.run(page, PAGE) for page in sorted(ids, key=ids.__getitem__))
        return [*map(rounded, (head, self.msgbuf, avail, bits, pmap)), pages]

    def file(self) -> bytes:
        return b"".join(self.parts())


M_TABLE, M_DATA, M_GONE, M_LARGE = 0x3000, 0x5000, 0x9000, 0x400000
M_BASE = 0xFFFFFFFF80000000


def minidump(version: int = 3) -> Amd64Minidump:
    """M1 to M3: from kernbase on a page, one that was left out, and nothing; 2 MiB further a page of 2 MiB."""
    memory = Memory()
    memory.put(M_DATA, pattern(5))
    memory.put(M_LARGE, pattern(6))
    memory.put(M_LARGE + PAGE, pattern(7))
    pages = {M_DATA, M_LARGE, M_LARGE + PAGE}
    if version == 1:
        entries = {0: M_DATA | PRESENT, 1: M_GONE | PRESENT, 512: M_LARGE | PRESENT}
        return Amd64Minidump(memory, pages, entries, 1, map_entries=1024)
    memory.word(M_TABLE, M_DATA | PRESENT | WRITABLE)
    memory.word(M_TABLE + 8, M_GONE | PRESENT)
    entries = {0: M_TABLE | PRESENT, 1: M_LARGE | PRESENT | LARGE_BIT | NO_EXECUTE, 3: 0xA000 | PRESENT}
    return Amd64Minidump(memory, pages | {M_TABLE}, entries, version)


def arm64_minidump(version: int = 3, page_size: int = 16384, dmapphys: int = 0x40000000) -> bytes:
    """M4: two pages from kernbase on, the second left out; the first is in the direct mapping too."""
    kernbase, dmapbase = 0xFFFF000000000000, 0xFFFFA00000000000
    data = dmapphys + page_size
    base = data // page_size if version < 2 else 1
    bits = bytearray(-(-(base + 1) // 64) * 8)
    bits[base // 8] |= 1 << base % 8
    avail = struct.pack("<QQQQ", dmapphys, dmapphys + 64 * page_size, 0, 0) if version >= 2 else b""
    entries = [data | 3, data + page_size | 3 | 1 << 7, 0, data | 3 | 1 << 53]
    pmap = struct.pack("<4Q", *entries)
    head = b"minidump FreeBSD/arm64".ljust(24, b"\0") + struct.pack("<IIII", version, 0, len(bits), len(pmap))
    head += struct.pack("<QQQQ", kernbase, dmapphys, dmapbase, dmapbase + 64 * page_size)
    head += struct.pack("<II", len(avail), int(page_size == 16384))
    return b"".join(rounded(part, page_size) for part in (head, avail, bytes(bits), pmap)) + pattern(5, page_size)
