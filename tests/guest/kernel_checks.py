"""What ``kernels.py`` compares: a dump as kvmd reads it, with the guest's word and with drgn's by DWARF."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Self

import drgn
from drgn.helpers.linux.pid import for_each_task
from dwarf_truth import BIT_FIELDS, STRUCTS, known, member

from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import process_pb2, stack_pb2

MEMBERS = 100
STRINGS = (
    (process_pb2.STRINGS_KIND_ARGUMENTS, "argv"),
    (process_pb2.STRINGS_KIND_ENVIRONMENT, "environ"),
)


def _read(path: Path) -> LinuxImage:
    return LinuxImage(Files(File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.name)))


class Subject(contextlib.ExitStack):
    """One dump and its truth."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place
        self.truth: dict[str, Any] = json.loads((place / "truth.json").read_text(errors="surrogateescape"))
        self.release: str = self.truth["release"]
        began = time.monotonic()
        self.image = _read(place / "vmcore")
        self.image.symbols(["init_task"])
        self.first = time.monotonic() - began
        self.noted = self.image.kernel.dump.layout.vmcoreinfo != b""

    def __enter__(self) -> Self:
        return self

    @cached_property
    def dwarf(self) -> drgn.Program:
        """drgn, with the kernel's vmlinux."""
        text = None if self.noted else self.image.kernel.info.text
        prog = drgn.Program(drgn.Platform(self.image.kernel.dump.architecture), vmcoreinfo=text)
        prog.set_core_dump(str(self.place / "vmcore"))
        prog.load_debug_info([str(self.place / "vmlinux")])
        return prog

    @cached_property
    def processes(self) -> list[dict[str, Any]]:
        """The processes that the guest told of, and that are in the dump."""
        alive = {p.pid for p in self.image.processes(process_pb2.GetProcsRequest())}
        return [p for p in self.truth["processes"] if p["pid"] in alive]


def _share(right: Iterable[bool]) -> str:
    found = list(right)
    return f"{sum(found)} of {len(found)}"


def vmcoreinfo(subject: Subject) -> str:
    """Where VMCOREINFO was found."""
    if subject.noted:
        return "note"
    return "memory" if b"\nCRASHTIME=" in subject.image.kernel.info.text or _whole(subject) else "made anew"


def _whole(subject: Subject) -> bool:
    return "SIZE(page)" in subject.image.kernel.info.lines


def symbols(subject: Subject) -> str:
    """Every symbol of the guest's /proc/kallsyms whose name is the only one; the kernel's own and modules'."""
    with (subject.place / "kallsyms").open() as file:
        rows = [line.split() for line in file]
    # BPF programs are listed as modules' symbols, and are none.
    rows = [row for row in rows if row[3:] not in (["[bpf]"], ["[__builtin__ftrace]"], ["[__builtin__kprobes]"])]
    times = Counter(row[2] for row in rows)
    rows = [row for row in rows if times[row[2]] == 1]
    found = subject.image.symbols([row[2] for row in rows])
    return _share(symbol.value == int(row[0], 16) for symbol, row in zip(found, rows, strict=True))


def offsets(subject: Subject) -> str:
    """Offsets and sizes of members, in bits."""
    subject.image.kernel.need_types()
    right = []
    for table in (STRUCTS, BIT_FIELDS):
        for struct, names in table.items():
            truth = known(subject.dwarf, struct)
            for name in names.split() if truth is not None else ():
                if truth.has_member(name):
                    ours = subject.image.kernel.prog.type(f"struct {struct}")
                    right.append(member(ours, name) == member(truth, name))
    return _share(islice(right, MEMBERS))


def processes(subject: Subject) -> str:
    """Pid, parent and name; /proc shows more of some kernel threads' names than their comm holds."""
    ours = {p.pid: p for p in subject.image.processes(process_pb2.GetProcsRequest())}

    def same(truth: dict[str, Any]) -> bool:
        p, name = ours[truth["pid"]], truth["comm"].encode("utf-8", "surrogateescape")
        return p.ppid == truth["ppid"] and (p.comm == name[:15] or name.startswith(p.comm + b"-") or _worker(p, name))

    return _share(map(same, subject.processes))


def _worker(p: process_pb2.Process, name: bytes) -> bool:
    return bool(p.comm.startswith(b"kworker") and name.startswith(p.comm))


def tasks(subject: Subject) -> str:
    """Every task, by its address, pid and name, as drgn lists them by DWARF."""

    def listed(prog: drgn.Program) -> set[tuple[int, int, bytes]]:
        return {(task.value_(), task.pid.value_(), task.comm.string_()) for task in for_each_task(prog)}

    truth = listed(subject.dwarf)
    return _share(task in truth for task in listed(subject.image.kernel.prog))


def arguments(subject: Subject) -> str:
    """Arguments and environments."""
    right = []
    for p in subject.processes:
        for kind, name in (
            (process_pb2.STRINGS_KIND_ARGUMENTS, "argv"),
            (process_pb2.STRINGS_KIND_ENVIRONMENT, "environ"),
        ):
            if p[name]:
                with contextlib.suppress(KvmError):
                    strings = subject.image.strings(p["pid"], kind, 0)
                    whole = b"".join(value + b"\0" for value in strings.values)
                    right.append(whole.rstrip(b"\0") == bytes.fromhex(p[name]).rstrip(b"\0"))
                    continue
                right.append(False)
    return _share(right)


def log(subject: Subject) -> str:
    """The log's records, by number and text."""
    ours = {record.sequence: record.text for record in subject.image.log()}
    return _share(_escaped(ours.get(number, b"")) == text for number, text in subject.truth["log"])


def _escaped(text: bytes) -> str:
    """As /dev/kmsg shows it (kernel/printk/printk.c, append_char)."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}" for byte in text)


def stacks(subject: Subject) -> str:
    """The stacks that the guest's /proc/PID/stack showed, twice alike: without the scheduler's functions."""
    bounds = [subject.image.kernel.address(name) for name in ("__sched_text_start", "__sched_text_end")]

    def ours(pid: int) -> list[list[Any]]:
        try:
            (stack,) = subject.image.stacks(stack_pb2.GetStackRequest(pid=pid))
        except KvmError:
            return []
        return [[f.symbol, f.offset] for f in stack.frames if not bounds[0] <= f.pc < bounds[1]]

    return _share(ours(p["pid"]) == p["stack"] for p in subject.processes if p["stack"])


def unwound(subject: Subject) -> str:
    """Every sleeping task's return addresses, as drgn unwinds them by DWARF and ORC."""
    right = []
    truth = {task.pid.value_(): task for task in for_each_task(subject.dwarf) if task.pid.value_()}
    for stack in subject.image.stacks(stack_pb2.GetStackRequest()):
        if stack.frames and stack.pid in truth and not stack.HasField("cpu"):
            # drgn goes on in user space, and there by guesses.
            trace = takewhile(lambda frame: frame.pc >> 63, subject.dwarf.stack_trace(truth[stack.pid]))
            pcs = [frame.pc for frame in trace if not frame.is_inline]
            right.append([frame.pc for frame in stack.frames] == pcs)
    return _share(right)


CHECKS: dict[str, Callable[[Subject], str]] = {
    "VMCOREINFO": vmcoreinfo,
    "symbols by": lambda subject: subject.image.info().symbols,
    "first symbol": lambda subject: f"{subject.first:.1f} s",
    "memory": lambda subject: f"{_bytes(subject) >> 20} MiB",
    "symbols": symbols,
    "members": offsets,
    "processes": processes,
    "tasks": tasks,
    "argv, environ": arguments,
    "log": log,
    "stacks in /proc": stacks,
    "stacks by drgn": unwound,
}


def _bytes(subject: Subject) -> int:
    layout: Any = subject.image.kernel.dump.layout
    return sum(map(len, layout.runs()))
