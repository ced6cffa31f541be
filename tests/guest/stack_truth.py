"""Records the stacks that drgn unwinds with a vmlinux with DWARF, and that vmlinux's ORC tables and calls,
which small dumps lack.

    python tests/guest/stack_truth.py VMLINUX DUMP [ORC] > tests/data/FOLDER/stacks.json

VMLINUX is of the dump's own build. ORC, of x86-64 only, is written: the sections .orc_unwind_ip and .orc_unwind, one
after the other as in memory; `xz -9e ORC` makes of it what tests/data holds.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.sched import cpu_curr

from kvmd.images.linux import elf
from kvmd.images.linux.source import FileSource


def frames(trace: drgn.StackTrace) -> list[list[Any]]:
    """Give pc, function, whether inlined and whether interrupted, of the kernel's frames."""
    kernel = (frame for frame in trace if frame.pc >> 63)
    return [[frame.pc, frame.name or "", frame.is_inline, frame.interrupted] for frame in kernel]


def write_tables(vmlinux: str, target: str) -> None:
    """Write the tables."""
    fd = os.open(vmlinux, os.O_RDONLY)
    source = FileSource(fd)
    sections = {section.name: section for section in elf.sections(source, elf.header(source))}
    with open(target, "wb") as out:
        for name in (".orc_unwind_ip", ".orc_unwind"):
            out.write(elf.content(source, sections[name]))
    os.close(fd)


def calls(vmlinux: str, moved: int, found: list[list[Any]]) -> dict[int, str]:
    """Give the five bytes of code before each frame's pc."""
    fd = os.open(vmlinux, os.O_RDONLY)
    source = FileSource(fd)
    text = next(s for s in elf.sections(source, elf.header(source)) if s.name == ".text")
    places = {pc: pc - moved - text.address - 5 for pc, *_ in found}
    code = {pc: source.read(text.offset + at, 5).hex() for pc, at in places.items() if 0 <= at < text.size}
    os.close(fd)
    return code


def main() -> None:
    """Print the document."""
    vmlinux, dump, *target = sys.argv[1:]
    if target:
        write_tables(vmlinux, target[0])
    prog = drgn.Program()
    prog.set_core_dump(dump)
    prog.load_debug_info([vmlinux])
    cpus = {cpu: frames(prog.stack_trace(cpu_curr(prog, cpu))) for cpu in for_each_online_cpu(prog)}
    moved = prog.main_module().debug_file_bias
    document = {
        "tasks": {task.pid.value_(): frames(prog.stack_trace(task)) for task in for_each_task(prog)},
        "cpus": cpus,
        "calls": calls(vmlinux, moved, [frame for found in cpus.values() for frame in found]),
    }
    json.dump(document, sys.stdout)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
