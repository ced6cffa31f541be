"""A dump of as many processes as wanted: made of one with few, by copies of one process in memory that is added to it.

What is copied is what a list of processes reads: task_struct, signal_struct, mm_struct and struct pid, each its own,
with the lists between them closed again. All have the arguments of the one that they are copies of.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from drgn import Program, sizeof

import libkvm
from bench.bulk import HIGH
from bench.measure import in_turn, seconds
from bench.rows import Row, Subject
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import process_pb2

FIRST_PID = 100_000
PAGE = 4096
_HUGE = 1 << 30
# Present, writable, accessed, dirty, 1 GiB, global, not executable: arch/x86/include/asm/pgtable_types.h.
_HUGE_ENTRY = 1 << 63 | 0x1E3
_PARTS = ("task_struct", "signal_struct", "mm_struct", "pid")


class Dump:
    """An ELF dump that is being changed.

    :ivar data: the file.
    """

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        phoff, self.entry, self.count = struct.unpack_from("<32xQ14xHH", self.data)
        self.table = bytes(self.data[phoff : phoff + self.entry * self.count])

    def put(self, physical: int, value: int) -> None:
        """Change eight bytes of physical memory."""
        for n in range(self.count):
            kind, _, at, _, start, size = struct.unpack_from("<IIQQQQ", self.table, n * self.entry)
            if kind == 1 and start <= physical < start + size:
                struct.pack_into("<Q", self.data, at + physical - start, value)
                return
        raise ValueError(f"no physical address {physical:#x} in the dump")


class Template:
    """The process that is copied, and where in its structures what is."""

    def __init__(self, image: LinuxImage) -> None:
        self.kernel = image.kernel
        self._prog: Program = self.kernel.prog
        everything = list(image.processes(process_pb2.GetProcsRequest(arguments=True)))
        self.process = next(p for p in everything if p.arguments.values and not p.arguments.HasField("error"))
        self.init = self.kernel.address("init_task")
        self.sizes = [-(-sizeof(self._prog.type(f"struct {name}")) // 64) * 64 for name in _PARTS]
        self.stride = sum(self.sizes)
        task = self.process.task_address
        signal, mm, pid = (self.word(task + self.at("task_struct", name)) for name in ("signal", "mm", "thread_pid"))
        places = zip((task, signal, mm, pid), self.sizes, strict=True)
        self.bytes = b"".join(self.kernel.memory.kernel(at, size) for at, size in places)

    def at(self, tag: str, member: str) -> int:
        """The offset of a member."""
        offset: int = self._prog.type(f"struct {tag}").member(member).offset
        return offset

    def word(self, address: int) -> int:
        """Eight bytes of kernel memory."""
        return int.from_bytes(self.kernel.memory.kernel(address, 8), "little")

    def copy(self, number: int, base: int, following: int, before: int) -> bytes:
        """One more process.

        :param base: where it will be.
        :param following: where the link of the next one in the list of tasks is; ``before``: that of the one before.
        """
        made = bytearray(self.bytes)
        signal, mm, pid = (base + sum(self.sizes[:n]) for n in (1, 2, 3))
        task, inside = "task_struct", signal - base
        head, node = signal + self.at("signal_struct", "thread_head"), base + self.at(task, "thread_node")
        words = {
            self.at(task, "tasks"): following,
            self.at(task, "tasks") + 8: before,
            self.at(task, "signal"): signal,
            self.at(task, "mm"): mm,
            self.at(task, "thread_pid"): pid,
            self.at(task, "group_leader"): base,
            node - base: head,
            node - base + 8: head,
            head - base: node,
            head - base + 8: node,
            inside + self.at("signal_struct", "pids") + 16: pid,  # of the group, and below of the session
            inside + self.at("signal_struct", "pids") + 24: pid,
        }
        for at, word in words.items():
            struct.pack_into("<Q", made, at, word)
        for name in ("pid", "tgid"):
            struct.pack_into("<i", made, self.at(task, name), FIRST_PID + number)
        struct.pack_into("<i", made, pid - base + self.at("pid", "numbers"), FIRST_PID + number)
        struct.pack_into("16s", made, self.at(task, "comm"), b"copy%d" % number)
        return bytes(made)


def crowded(source: Path, target: Path, count: int) -> None:
    """Write the dump with so many processes more."""
    with open(source, "rb") as file:
        image = LinuxImage(Files(File(file.fileno(), str(source))))
        template, dump = Template(image), Dump(source)
        tables = image.kernel.memory.tables
        assert tables is not None
        direct = template.word(image.kernel.address("page_offset_base"))
        size = -(-count * template.stride // _HUGE) * _HUGE
        _map(dump, template, direct, size)
        link = template.at("task_struct", "tasks")
        places = [direct + HIGH + n * template.stride for n in range(count)]
        first, last = template.init + link, template.word(template.init + link + 8)
        for address, value in ((last, places[0] + link), (first + 8, places[-1] + link)):
            dump.put(image.kernel.memory.translate(address).physical, value)
        at_data = len(dump.data) + -len(dump.data) % PAGE
        struct.pack_into("<Q", dump.data, 32, at_data + size)
        struct.pack_into("<H", dump.data, 56, dump.count + 1)
        with target.open("wb") as out:
            out.write(dump.data)
            out.seek(at_data)
            for n, base in enumerate(places):
                following = places[n + 1] + link if n + 1 < count else first
                out.write(template.copy(n, base, following, places[n - 1] + link if n else last))
            out.seek(at_data + size)
            out.write(dump.table + struct.pack("<IIQQQQQQ", 1, 7, at_data, 0, HIGH, size, size, PAGE))


def _map(dump: Dump, template: Template, direct: int, size: int) -> None:
    """Have the kernel's page tables map memory at HIGH in the direct mapping, by pages of 1 GiB."""
    memory = template.kernel.memory
    root = memory.translate(template.kernel.address("init_top_pgt")).physical
    levels = memory.tables.paging.levels if memory.tables else 4
    table = root
    for level in range(levels, 3, -1):
        index = (direct + HIGH) >> 12 + 9 * (level - 1) & 511
        table = int.from_bytes(memory.physical(table + 8 * index, 8), "little") & 0xFFFFFFFFFF000
        assert table, "the direct mapping has no such table"
    for at in range(0, size, _HUGE):
        index = direct + HIGH + at >> 30 & 511
        dump.put(table + 8 * index, HIGH + at | _HUGE_ENTRY)


def listing(large: Subject, small: str, rounds: int) -> Row:
    """List the processes of a dump with 100,000 more of them, and of one with 1,000, for each."""
    counts: dict[str, int] = {}

    def each(kernel: libkvm.Kernel, name: str) -> float:
        took = seconds(lambda: counts.__setitem__(name, len(kernel.processes(timeout=600))))
        return took / counts[name]

    with large.client.open(small) as few:
        ours, theirs = in_turn(lambda: each(large.kernel, "many"), lambda: each(few, "few"), rounds)
    what = f"{counts['many']:,} processes listed, each"
    return Row(what, f"the same of {counts['few']:,}", ours, theirs, 1.2, unit="a process")


if __name__ == "__main__":
    import sys

    crowded(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    print(f"{sys.argv[2]}: {os.stat(sys.argv[2]).st_size >> 20} MiB")
