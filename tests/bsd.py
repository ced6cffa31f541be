"""BSD dumps made byte by byte, as their kernels and savecore(8) write them.

K1 to K7, M1 to M4, E1 and N1 to N2 are the fixtures that the acceptance list A18 to A27 names. Nothing here is shared
with the readers under test: what they take apart is put together from the formats' own descriptions.
"""

from __future__ import annotations

import contextlib
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvmd.images.base import File, Files
from kvmd.images.registry import open_image

PAGE = 4096
LARGE, HUGE = 2 << 20, 1 << 30
PRESENT, WRITABLE, LARGE_BIT, NO_EXECUTE = 1, 2, 0x80, 1 << 63
X86_64, AARCH64 = 62, 183
TEXT_BASE = 0xFFFFFFFF80200000
"""Where K1 maps its data page: index 511, 510, 1, 0 of levels 4 to 1."""
DATA_PAGE = 0x5000


class Memory:
    """Physical memory, sparse: what was not put is 0."""

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}

    def put(self, at: int, data: bytes) -> None:
        while data:
            page, inside = divmod(at, PAGE)
            piece, data = data[: PAGE - inside], data[PAGE - inside :]
            self.pages.setdefault(page, bytearray(PAGE))[inside : inside + len(piece)] = piece
            at += len(piece)

    def word(self, at: int, value: int) -> None:
        self.put(at, struct.pack("<Q", value))

    def get(self, at: int, length: int) -> bytes:
        first, inside = divmod(at, PAGE)
        pages = range(first, (at + length + PAGE - 1) // PAGE)
        return b"".join(bytes(self.pages.get(page, bytes(PAGE))) for page in pages)[inside : inside + length]

    def run(self, start: int, size: int) -> bytes:
        whole = bytearray(size)
        for number, page in self.pages.items():
            at = number * PAGE - start
            if -PAGE < at < size:
                low, high = max(at, 0), min(at + PAGE, size)
                whole[low:high] = page[low - at : high - at]
        return bytes(whole)


def pattern(seed: int, length: int = PAGE) -> bytes:
    """Bytes of which no two pages have the same, nor two words of one."""
    return b"".join(struct.pack("<IHH", seed, index, ~index & 0xFFFF) for index in range(length // 8))


class Amd64:
    """Page tables of four levels, made as mappings are asked for."""

    def __init__(self, memory: Memory, root: int = 0x1000, free: Iterable[int] | None = None) -> None:
        self.memory, self.root = memory, root
        self._free = iter(free if free is not None else range(0x2000, 1 << 40, PAGE))
        self._tables: dict[tuple[int, int], int] = {}

    def map(self, virtual: int, physical: int, size: int = PAGE, bits: int = PRESENT | WRITABLE) -> None:
        last = {PAGE: 1, LARGE: 2, HUGE: 3}[size]
        table = self.root
        for level in range(4, last, -1):
            shift = 3 + 9 * level
            key = (level, virtual >> shift)
            if key not in self._tables:
                self._tables[key] = next(self._free)
                self.memory.word(table + (virtual >> shift & 511) * 8, self._tables[key] | PRESENT | WRITABLE)
            table = self._tables[key]
        entry = physical | bits | (LARGE_BIT if last > 1 else 0)
        self.memory.word(table + (virtual >> 3 + 9 * last & 511) * 8, entry)


def aligned(data: bytes, align: int) -> bytes:
    return data + bytes(-len(data) % align)


@dataclass
class Kcore:
    """A NetBSD dump. Its parts may be changed before :meth:`file` or :meth:`device` puts them together."""

    cpu: bytes
    memory: bytes
    machine: int = 157
    align: int = 8
    magic: int = 0x8FCA
    segments: int = 2
    cpu_magic: int = 4 << 24 | 0x8FAC
    data_magic: int = 8 << 24 | 0x8FAC
    cpu_size: int | None = None

    def file(self) -> bytes:
        head = struct.pack(">I", self.machine << 16 | self.magic)
        head += struct.pack(
            "<HHI", (12 + self.align - 1) & -self.align, (8 + self.align - 1) & -self.align, self.segments
        )
        size = len(self.cpu) if self.cpu_size is None else self.cpu_size
        cpu = struct.pack(">I", self.cpu_magic) + struct.pack("<I", size)
        data = struct.pack(">I", self.data_magic) + struct.pack("<I", len(self.memory) & 0xFFFFFFFF)
        parts = [aligned(part, self.align) for part in (head, cpu)]
        return b"".join([*parts, self.cpu, aligned(data, self.align), self.memory])

    def device(self) -> bytes:
        """What the kernel leaves on its dump device."""
        size = len(self.cpu) if self.cpu_size is None else self.cpu_size
        head = struct.pack(">I", 1 << 26 | self.machine << 16 | self.magic) + struct.pack("<I", size)
        return aligned(head, self.align) + self.cpu + self.memory


def kcore(memory: Memory, runs: Sequence[tuple[int, int]], root: int = 0x1000) -> Kcore:
    """An amd64 kernel core."""
    cpu = struct.pack("<QQ", root, len(runs)) + b"".join(struct.pack("<QQ", *run) for run in runs)
    room = -(-(8 + 16 + 16 * len(runs)) // 512) * 512 - 8
    return Kcore(cpu.ljust(room, b"\0"), b"".join(memory.run(*run) for run in runs))


def k1() -> Kcore:
    """One run of RAM; TEXT_BASE is the data page, its next page another, the one after that nothing."""
    memory = Memory()
    tables = Amd64(memory)
    tables.map(TEXT_BASE, DATA_PAGE)
    tables.map(TEXT_BASE + PAGE, 0x6000)
    memory.put(DATA_PAGE, pattern(5))
    memory.put(0x6000, pattern(6))
    return kcore(memory, [(0, 0x10000)])


LARGE_VIRTUAL, HUGE_VIRTUAL = 0xFFFFFFFF80400000, 0xFFFFFFFF40000000
K2_PAGES = (0, 1, 2, 511)


def k2() -> Kcore:
    """As K1, with a page of 2 MiB at physical 2 MiB, and one of 1 GiB at 0."""
    memory = Memory()
    tables = Amd64(memory)
    tables.map(LARGE_VIRTUAL, LARGE, LARGE)
    tables.map(HUGE_VIRTUAL, 0, HUGE)
    for number in K2_PAGES:
        memory.put(LARGE + number * PAGE, pattern(100 + number))
    return kcore(memory, [(0, 2 * LARGE)])


HOLE, AFTER_HOLE = 0x8000, 0x20000


def k3() -> Kcore:
    """Two runs of RAM; a page of 2 MiB lies over both and the hole between; a page of 4 KiB in the hole."""
    memory = Memory()
    tables = Amd64(memory)
    tables.map(LARGE_VIRTUAL, 0, LARGE)
    tables.map(TEXT_BASE, HOLE)
    for at in (0x7000, AFTER_HOLE):
        memory.put(at, pattern(at))
    return kcore(memory, [(0, HOLE), (AFTER_HOLE, 0x8000)])


def k4() -> Kcore:
    """31 runs of RAM, for which the CPU data are 512 bytes longer."""
    memory = Memory()
    Amd64(memory).map(TEXT_BASE, DATA_PAGE + 0x30 * PAGE)
    memory.put(DATA_PAGE + 0x30 * PAGE, pattern(5))
    # The tables' pages together, the data page alone, and pages further off.
    further = ((0x100000 + 2 * number * PAGE, PAGE) for number in range(29))
    return kcore(memory, [(0, 8 * PAGE), (DATA_PAGE + 0x30 * PAGE, PAGE), *further])


GRANULES = {14: 1, 12: 2, 16: 3}
ARM_TEXT = 0xFFFFC00000000000


@dataclass
class Arm:
    """aarch64 page tables, of pages of ``1 << shift`` bytes and a half of ``bits`` bits."""

    memory: Memory
    shift: int = 12
    bits: int = 48
    root: int = 0x10000
    free: int = 0x20000
    tables: dict[tuple[int, int], int] = field(default_factory=dict)

    @property
    def tcr(self) -> int:
        return GRANULES[self.shift] << 30 | (64 - self.bits) << 16

    def map(self, virtual: int, physical: int, level: int = 1) -> None:
        stride = self.shift - 3
        inside, table = virtual & (1 << self.bits) - 1, self.root
        top = -(-(self.bits - self.shift) // stride)
        for at in range(top, level, -1):
            low = self.shift + stride * (at - 1)
            key = (at, inside >> low)
            if key not in self.tables:
                self.tables[key], self.free = self.free, self.free + (1 << self.shift)
                self.memory.word(table + self._index(inside, low, stride) * 8, self.tables[key] | 3)
            table = self.tables[key]
        low = self.shift + stride * (level - 1)
        self.memory.word(table + self._index(inside, low, stride) * 8, physical | (3 if level == 1 else 1))

    def _index(self, inside: int, low: int, stride: int) -> int:
        return inside >> low & (1 << min(stride, self.bits - low)) - 1


def k5(shift: int = 12, bits: int = 48, *, counted: bool = False) -> Kcore:
    """An aarch64 kernel core; ``counted`` with kh_nramsegs, as later kernels write it."""
    memory = Memory()
    tables = Arm(memory, shift, bits)
    size = 1 << shift
    data = 0x80000
    tables.map(ARM_TEXT, data)
    memory.put(data, pattern(5, min(size, 8 * PAGE)))
    runs = [(0x10000, 0xF0000)]
    cpu = struct.pack("<QQ", tables.tcr, tables.root)
    if counted:
        cpu += struct.pack("<Q", len(runs))
    cpu += b"".join(struct.pack("<QQ", *run) for run in runs)
    return Kcore(cpu.ljust(496, b"\0"), memory.run(*runs[0]), machine=183, align=16)


def k7() -> dict[str, bytes]:
    """K1's file, broken in every way that the acceptance list names."""
    broken: dict[str, bytes] = {}
    for name, changes in {
        "another machine": {"machine": 134},
        "an unknown machine": {"machine": 999},
        "one segment": {"segments": 1},
        "three segments": {"segments": 3},
        "DATA before CPU": {"cpu_magic": 8 << 24 | 0x8FAC, "data_magic": 4 << 24 | 0x8FAC},
        "no magic of the CPU segment": {"cpu_magic": 4 << 24 | 0x1234},
        "a huge c_size": {"cpu_size": 0xFFFFFFF8},
        "a c_size of nothing": {"cpu_size": 0},
    }.items():
        made = k1()
        for key, value in changes.items():
            setattr(made, key, value)
        broken[name] = made.file()
    whole = k1().file()
    broken |= {f"cut at {end}": whole[:end] for end in (4, 8, 12, 16, 20, 24, 30, 528, 532)}
    many = k1()
    many.cpu = struct.pack("<QQ", 0x1000, 1 << 60) + many.cpu[16:]
    overlapping = k1()
    overlapping.cpu = struct.pack("<QQQQQQ", 0x1000, 2, 0, 0x10000, 0x8000, 0x10000).ljust(504, b"\0")
    wrapping = k1()
    wrapping.cpu = struct.pack("<QQQQ", 0x1000, 1, 1 << 63, (1 << 63) + 1).ljust(504, b"\0")
    return broken | {
        "more runs than fit": many.file(),
        "overlapping runs": overlapping.file(),
        "a run over the end": wrapping.file(),
    }


def elf(
    kind: int,
    machine: int,
    sections: Sequence[tuple[str, int, int, int, bytes]] = (),
    segments: Sequence[tuple[int, int, bytes]] = (),
    osabi: int = 0,
) -> bytes:
    """An ELF64 file: sections (name, type, flags, address, data), segments (physical, size, data)."""
    body = bytearray(56 * len(segments))
    programs = b""
    for physical, size, data in segments:
        body += bytes(-(64 + len(body)) % PAGE)
        programs += struct.pack("<IIQQQQQQ", 1, 4, 64 + len(body), physical, physical, len(data), size, PAGE)
        body += data
    body[: len(programs)] = programs
    rows = [("", 0, 0, 0, b""), *sections] if sections else []
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in rows[1:]) + b".shstrtab\0"
    if rows:
        rows.append((".shstrtab", 3, 0, 0, names))
    headers = b""
    for index, (name, type_, flags, address, data) in enumerate(rows):
        link = index + 1 if type_ == 2 else 0
        offset = names.index(b"\0" + name.encode() + b"\0") + 1 if name else 0
        headers += struct.pack("<IIQQQQIIQQ", offset, type_, flags, address, 64 + len(body), len(data), link, 0, 1, 0)
        body += data
    ident = b"\x7fELF\x02\x01\x01" + bytes([osabi]) + bytes(8)
    counts = (64, 56, len(segments), 64, len(rows), max(len(rows) - 1, 0))
    places = (0, 64 if segments else 0, 64 + len(body) if rows else 0)
    return ident + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, *places, 0, *counts) + bytes(body) + headers


OBJECT, FUNC = 0x11, 0x12


def kernel(
    symbols: Mapping[str, int] | None,
    machine: int = X86_64,
    *,
    netbsd: bool = False,
    more: Sequence[tuple[str, int, int]] = (),
) -> bytes:
    """N1, a kernel's ELF file; without symbols N2, a stripped one.

    :param symbols: global data.
    :param more: further symbols: name, value, st_info.
    """
    sections = [(".text", 1, 6, TEXT_BASE, b"\x90" * 64), (".data", 1, 3, TEXT_BASE + PAGE, b"d" * 64)]
    if netbsd:
        note = struct.pack("<III", 7, 4, 1) + b"NetBSD\0\0" + struct.pack("<I", 1000000000)
        sections.append((".note.netbsd.ident", 7, 2, 0, note))
    if symbols is not None:
        names, rows = b"\0", bytes(24)
        for name, value, info in [*((n, v, OBJECT) for n, v in symbols.items()), *more]:
            section = 1 if info & 15 == 2 else 2
            rows += struct.pack("<IBBHQQ", len(names), info, 0, section, value, 8)
            names += name.encode() + b"\0"
        sections += [(".symtab", 2, 0, 0, rows), (".strtab", 3, 0, 0, names)]
    return elf(2, machine, sections)


E1_SYMBOLS = {"kernbase": 0xFFFFFFFF80000000, "KPML4phys": 0xFFFFFFFF80000000 + 0x9000}


def e1() -> bytes:
    """A FreeBSD full dump of two chunks; KPML4phys is at physical 0x9000."""
    memory = Memory()
    tables = Amd64(memory)
    memory.word(0x9000, tables.root)
    tables.map(TEXT_BASE, DATA_PAGE)
    tables.map(TEXT_BASE + PAGE, 0x40000)
    tables.map(LARGE_VIRTUAL, 0, LARGE)
    tables.map(TEXT_BASE + 2 * PAGE, 0x20000)
    memory.put(DATA_PAGE, pattern(5))
    memory.put(0x40000, pattern(6))
    chunks = [(0, 0x10000), (0x40000, 0x2000)]
    return elf(4, X86_64, segments=[(at, size, memory.run(at, size)) for at, size in chunks], osabi=255)


@contextlib.contextmanager
def opened(core: bytes | str, execfile: bytes | None = None, dump_offset: int | None = None) -> Iterator[Any]:
    """Open a dump of these bytes, or of this path, as a worker does."""
    with contextlib.ExitStack() as stack:
        files = []
        for name, data in (("core", core), ("kernel", execfile)):
            if isinstance(data, bytes):
                file = stack.enter_context(tempfile.TemporaryFile())
                file.write(data)
                file.flush()
                files.append(File(file.fileno(), name))
            elif data is None:
                files.append(None)
            else:
                files.append(File(stack.enter_context(open(data, "rb")).fileno(), name))
        yield open_image(Files(files[0], files[1], dump_offset=dump_offset))
