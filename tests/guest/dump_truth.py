"""What a whole dump must tell, for ``kernels.py``: its guest's word (inside/record.py), and drgn's by its vmlinux."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import drgn
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.pid import find_task, for_each_task
from drgn.helpers.linux.sched import cpu_curr

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from dwarf_truth import BIT_FIELDS, STRUCTS, known, member, objects  # noqa: E402

from kernel_truth import ARGUMENTS, ENVIRONMENT, String, Symbol, Truth, only_ones, read  # noqa: E402
from kvmd.v1 import process_pb2, stack_pb2  # noqa: E402

MEMBERS = 100
# BPF programs and what is traced are listed as modules' symbols, and are none.
NO_MODULES = (["[bpf]"], ["[__builtin__ftrace]"], ["[__builtin__kprobes]"])


def of_dump(place: Path) -> Truth:
    """The truth of a directory that ``kernels.py boot`` made."""
    guest: dict[str, Any] = json.loads((place / "truth.json").read_text(errors="surrogateescape"))
    image = read(place / "vmcore")
    prog = dwarf(place, image)
    alive = {p.pid for p in image.processes(process_pb2.GetProcsRequest())}
    listed = [p for p in guest["processes"] if p["pid"] in alive]
    with (place / "kallsyms").open() as file:
        rows = [line.split() for line in file]
    layout: Any = image.kernel.dump.layout
    return Truth(
        image,
        only_ones((row[2], int(row[0], 16)) for row in rows if row[3:] not in NO_MODULES)
        + unlisted(prog, {row[2] for row in rows}),
        dict(islice(members(prog), MEMBERS)),
        [(t.pid.value_(), t.comm.string_().decode("utf-8", "replace"), t.value_()) for t in for_each_task(prog)],
        [(p["pid"], p["ppid"], p["comm"].encode("utf-8", "surrogateescape")) for p in listed],
        [string for p in listed for string in strings(p)],
        [(number, text) for number, text in guest["log"]],
        dict(unwound(prog)),
        {cpu: returns(prog.stack_trace(cpu_curr(prog, cpu))) for cpu in for_each_online_cpu(prog)},
        {p["pid"]: p["stack"] for p in listed if p["stack"] and p["switches"] == switches(prog, p["pid"])},
        lambda: image.stacks(stack_pb2.GetStackRequest()),
        {"memory": f"{sum(map(len, layout.runs())) >> 20} MiB"},
    )


def dwarf(place: Path, image: Any) -> drgn.Program:
    """drgn, with the kernel's vmlinux."""
    noted = image.kernel.dump.layout.vmcoreinfo != b""
    platform = drgn.Platform(image.kernel.dump.architecture)
    prog = drgn.Program(platform, vmcoreinfo=None if noted else image.kernel.info.text)
    prog.set_core_dump(str(place / "vmcore"))
    prog.load_debug_info([str(place / "vmlinux")])
    return prog


def members(prog: drgn.Program) -> Iterator[tuple[str, list[int]]]:
    """Offsets and sizes of members, in bits."""
    for table in (STRUCTS, BIT_FIELDS):
        for struct, names in table.items():
            kind = known(prog, struct)
            if kind is not None:
                for name in filter(kind.has_member, names.split()):
                    yield f"{struct}.{name}", member(kind, name)


def unlisted(prog: drgn.Program, listed: set[str]) -> list[Symbol]:
    """Objects that kvmd finds in a kernel without KALLSYMS_ALL."""
    return [(name, value) for name, (value, _) in objects(prog).items() if name not in listed]


def strings(p: dict[str, Any]) -> Iterator[String]:
    """Arguments and environment of who has some."""
    for kind, name in ((ARGUMENTS, "argv"), (ENVIRONMENT, "environ")):
        if p[name]:
            yield p["pid"], kind, bytes.fromhex(p[name])


def switches(prog: drgn.Program, pid: int) -> int:
    """How often a task was switched from; -1 of one that runs."""
    task = find_task(prog, pid)
    return -1 if task.on_cpu else int((task.nvcsw + task.nivcsw).value_())


def unwound(prog: drgn.Program) -> Iterator[tuple[int, list[int]]]:
    """Every task's return addresses."""
    for task in for_each_task(prog):
        if task.pid.value_() and not task.exit_state.value_():
            yield task.pid.value_(), returns(prog.stack_trace(task))


def returns(trace: drgn.StackTrace) -> list[int]:
    """The kernel's: drgn goes on in user space, and there by guesses."""
    return [frame.pc for frame in takewhile(lambda frame: frame.pc >> 63, trace) if not frame.is_inline]
