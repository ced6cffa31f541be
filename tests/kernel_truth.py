"""What a dump must tell: its guest's word, and drgn's by the DWARF vmlinux of the same build; here of fixtures."""

from __future__ import annotations

import json
import lzma
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images import DATA, fixture
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.stack import Stacks
from kvmd.images.linux.tasks import Tasks
from kvmd.v1 import process_pb2, stack_pb2
from overlay import Overlay

ARGUMENTS, ENVIRONMENT = process_pb2.STRINGS_KIND_ARGUMENTS, process_pb2.STRINGS_KIND_ENVIRONMENT
_SIZE_VMCOREINFO = 4096 + 40  # of KDUMP's sub-header

Symbol = tuple[str, int]
Process = tuple[int, int, bytes]
"""Pid, parent's pid, name."""
String = tuple[int, Any, bytes]
"""Pid, kind, value."""


@dataclass
class Truth:
    """One dump and what is known of it; empty where nothing is.

    :ivar members: of each ``struct.member`` offset and size in bits.
    :ivar tasks: pid, name and address.
    :ivar log: number and text of records.
    :ivar proc_stacks: by pid, function and offset of the frames that /proc/PID/stack showed.
    :ivar unwound: by pid, the return addresses of tasks.
    :ivar running: by CPU, those of what it ran; none in user space.
    :ivar facts: what was measured.
    """

    image: LinuxImage
    symbols: list[Symbol]
    members: dict[str, list[int]]
    tasks: list[tuple[int, str, int]]
    processes: list[Process]
    strings: list[String]
    log: list[tuple[int, str]]
    unwound: dict[int, list[int]]
    running: dict[int, list[int]]
    proc_stacks: dict[int, list[list[Any]]] = field(default_factory=dict)
    stacks: Callable[[], Iterable[stack_pb2.Stack]] = tuple
    facts: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> LinuxImage:
    """Open a dump; its descriptor stays open as long as the process."""
    return LinuxImage(Files(File(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path.name)))


def only_ones(rows: Iterable[Symbol]) -> list[Symbol]:
    """Those whose name is the only one."""
    listed = list(rows)
    times = Counter(name for name, _ in listed)
    return [row for row in listed if times[row[0]] == 1]


def unnoted(name: str) -> bytes:
    """A KDUMP fixture as if the guest had had no vmcoreinfo device; the kernel's own page is still there."""
    data = bytearray(fixture(name).path.read_bytes())
    data[_SIZE_VMCOREINFO : _SIZE_VMCOREINFO + 8] = bytes(8)
    return bytes(data)


def wiped(name: str) -> bytes:
    """The same without the kernel's own page: it was built without CONFIG_CRASH_CORE."""
    return unnoted(name).replace(b"OSRELEASE=", bytes(10))


def of_fixture(folder: str, change: Callable[[str], bytes] | None = None) -> Truth:
    """A fixture's truth.

    :param change: takes something out of the dump.
    """
    path, truth = fixture(f"{folder}/vmcore.kdump")
    if change is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(change(f"{folder}/vmcore.kdump"))
            file.flush()
            image = read(Path(file.name))
    else:
        image = read(path)
    dwarf = _document(folder, "dwarf.json")
    stacks = _document(folder, "stacks.json")
    # One that the guest had seen in its last moment ended before the panic.
    there = {pid for pid, _, _ in dwarf.get("tasks", ())} or truth["pids_at_end"]
    alive = [p for p in truth["processes"] if p["pid"] in truth["pids_at_end"] and p["pid"] in there]
    ended = {p["pid"] for p in alive if p["state"] == "Z"}
    symbols = _symbols(folder, truth)
    listed = {name for name, _ in symbols}
    return Truth(
        image,
        symbols + [(name, value) for name, (value, _) in dwarf.get("objects", {}).items() if name not in listed],
        dwarf.get("members", {}),
        [(pid, comm, address) for pid, comm, address in dwarf.get("tasks", ())],
        [(p["pid"], p["ppid"], p["comm"].encode("utf-8", "surrogateescape")) for p in alive],
        [string for p in alive if not p["kthread"] and p["state"] != "Z" for string in _strings(p)],
        [(number, text) for number, text in dwarf.get("log", ())],
        {int(pid): _returns(frames) for pid, frames in stacks.get("tasks", {}).items() if int(pid) not in ended},
        {int(cpu): _returns(frames) for cpu, frames in stacks.get("cpus", {}).items()},
        stacks=lambda: _stacks(folder, image, stacks),
    )


def _document(folder: str, name: str) -> dict[str, Any]:
    path = DATA / folder / name
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _symbols(folder: str, truth: dict[str, Any]) -> list[Symbol]:
    path = DATA / folder / "kallsyms.xz"
    if not path.exists():
        return list(truth["kallsyms"].items())
    with lzma.open(path, "rt") as file:
        rows = [line.split() for line in file]
    return only_ones((name, int(value, 16)) for value, _, name in rows)


def _strings(p: dict[str, Any]) -> list[String]:
    both = ((ARGUMENTS, p["argv"]), (ENVIRONMENT, p["env"]))
    return [
        (p["pid"], kind, b"".join(s.encode("utf-8", "surrogateescape") + b"\0" for s in values))
        for kind, values in both
    ]


def _returns(frames: list[list[Any]]) -> list[int]:
    """Without the inlined, and without what drgn makes of a stack that is gone: no function at all."""
    return [pc for pc, name, inlined, _ in frames if not inlined and not name.startswith("0x")]


def _stacks(folder: str, image: LinuxImage, truth: dict[str, Any]) -> Iterable[stack_pb2.Stack]:
    """The stacks; the small dumps lack the kernel's ORC tables, which stand beside them."""
    request = stack_pb2.GetStackRequest()
    path = DATA / folder / "orc.xz"
    if not path.exists():
        return image.stacks(request)
    code = {int(pc) - 5: bytes.fromhex(text) for pc, text in truth["calls"].items()}
    tables = {image.kernel.address("__start_orc_unwind_ip"): lzma.decompress(path.read_bytes())}
    kernel: Any = Overlay(image.kernel, tables | code)
    return Stacks(kernel, Tasks(kernel)).select(request)
