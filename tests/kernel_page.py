"""What kvmd finds in dumps with no file beside them, kernel by kernel: makes docs/kernels.md.

    python tests/kernel_page.py            # writes the page anew

The first table is made of the dumps in tests/data. The second is of whole dumps, which are too large to be kept: what
tests/guest/kernels.py found is in tests/data/kernels.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import drgn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "guest"), str(HERE.parent)]

from dwarf_truth import escaped  # noqa: E402

from images import DATA  # noqa: E402
from kernel_truth import Truth, of_fixture, unnoted, wiped  # noqa: E402
from kvmd.errors import KvmError  # noqa: E402
from kvmd.v1 import process_pb2  # noqa: E402

PAGE = HERE.parent / "docs" / "kernels.md"
WHOLE = DATA / "kernels.json"
NONE = "-"
FIXTURES: dict[str, Callable[[], Truth]] = {
    "5.10": lambda: of_fixture("linux-5.10"),
    "5.10, no note": lambda: of_fixture("linux-5.10", unnoted),
    "5.10, no VMCOREINFO": lambda: of_fixture("linux-5.10", wiped),
    "5.15": lambda: of_fixture("linux-5.15"),
    "5.15, no VMCOREINFO": lambda: of_fixture("linux-5.15", wiped),
    "6.1": lambda: of_fixture("qemu"),
    "6.1, 5 levels": lambda: of_fixture("la57"),
    "6.1, 5 levels, no VMCOREINFO": lambda: of_fixture("la57", wiped),
    "6.1, no KALLSYMS_ALL": lambda: of_fixture("x86-no-data-symbols"),
    "6.1, no KALLSYMS_ALL, no VMCOREINFO": lambda: of_fixture("x86-no-data-symbols", wiped),
    "6.1 of Debian, panicked": lambda: of_fixture("debian-6.1-panic"),
    "6.1 of Debian, arm64, no KALLSYMS_ALL": lambda: of_fixture("arm64-6.1"),
    "6.1 of Debian, arm64, no KALLSYMS_ALL, no VMCOREINFO": lambda: of_fixture("arm64-6.1", wiped),
    "6.1, s390x": lambda: of_fixture("s390x-6.1"),
}


def share(right: Iterable[bool]) -> str:
    """How many of how many."""
    found = list(right)
    return f"{sum(found)} of {len(found)}" if found else NONE


def vmcoreinfo(truth: Truth) -> str:
    """Where VMCOREINFO was found."""
    kernel = truth.image.kernel
    if kernel.dump.layout.vmcoreinfo:
        return "note"
    return "memory" if kernel.info.size("page") is not None else "made anew"


def symbols(truth: Truth) -> str:
    """Values of symbols."""
    found = truth.image.symbols([name for name, _ in truth.symbols])
    return share(s.found and s.value == value for s, (_, value) in zip(found, truth.symbols, strict=True))


def members(truth: Truth) -> str:
    """Offsets and sizes of members, in bits."""
    truth.image.kernel.need_types()
    prog = truth.image.kernel.prog

    def same(name: str, place: list[int]) -> bool:
        struct, _, member = name.partition(".")
        try:
            found = prog.type(f"struct {struct}").member(member)
        except LookupError:
            return False
        return [found.bit_offset, found.bit_field_size or 8 * drgn.sizeof(found.type)] == place

    return share(same(name, place) for name, place in truth.members.items())


def processes(truth: Truth) -> str:
    """Pid, parent and name; /proc shows more of a worker's name than its comm holds."""
    ours = {p.pid: p for p in truth.image.processes(process_pb2.GetProcsRequest())}

    def same(pid: int, parent: int, name: bytes) -> bool:
        p = ours.get(pid)
        if p is None or p.ppid != parent:
            return False
        return p.comm == name[:15] or name.startswith(p.comm + b"-") or name.startswith(b"kworker") is (
            name.startswith(p.comm) and p.comm.startswith(b"kworker")
        )

    return share(same(*process) for process in truth.processes)


def tasks(truth: Truth) -> str:
    """Every task, by pid, name and address."""
    if not truth.tasks:
        return NONE
    threads = truth.image.processes(process_pb2.GetProcsRequest(threads=True))
    ours = {(t.pid, t.comm.decode("utf-8", "replace"), t.task_address) for t in threads}
    return share(task in ours for task in truth.tasks)


def strings(truth: Truth) -> str:
    """Arguments and environments; those that were swapped out are not in the dump."""

    def same(pid: int, kind: process_pb2.StringsKind, value: bytes) -> bool:
        try:
            found = truth.image.strings(pid, kind, 0)
        except KvmError:
            return False
        return b"".join(s + b"\0" for s in found.values).rstrip(b"\0") == value.rstrip(b"\0")

    return share(same(*string) for string in truth.strings)


def log(truth: Truth) -> str:
    """The log's records, by number and text."""
    ours = {record.sequence: escaped(record.text) for record in truth.image.log()}
    return share(ours.get(number) == text for number, text in truth.log)


def proc_stacks(truth: Truth) -> str:
    """What /proc/PID/stack showed: without the scheduler's functions."""
    if not truth.proc_stacks:
        return NONE
    bounds = range(*(truth.image.kernel.address(f"__sched_text_{end}") for end in ("start", "end")))
    ours = {s.pid: [[f.symbol, f.offset] for f in s.frames if f.pc not in bounds] for s in truth.stacks()}
    return share(ours.get(pid) == frames for pid, frames in truth.proc_stacks.items())


def unwound(truth: Truth) -> str:
    """Return addresses of tasks, and of what CPUs ran."""
    if not truth.unwound:
        return NONE
    stacks = [(stack, [frame.pc for frame in stack.frames]) for stack in truth.stacks()]
    ours = {stack.pid: pcs for stack, pcs in stacks}
    running = {stack.cpu: pcs for stack, pcs in stacks if stack.HasField("cpu")}
    return share(
        [ours.get(pid) == pcs for pid, pcs in truth.unwound.items()]
        + [running.get(cpu) == pcs for cpu, pcs in truth.running.items()]
    )


CHECKS: dict[str, Callable[[Truth], str]] = {
    "VMCOREINFO": vmcoreinfo,
    "symbols by": lambda truth: truth.image.info().symbols,
    "symbols": symbols,
    "members": members,
    "processes": processes,
    "argv, environ": strings,
    "tasks": tasks,
    "log": log,
    "stacks": unwound,
}
WHOLE_CHECKS = CHECKS | {"stacks in /proc": proc_stacks}


def cells(truth: Truth, checks: dict[str, Callable[[Truth], str]]) -> dict[str, str]:
    """One dump's results."""
    return {name: check(truth) for name, check in checks.items()} | truth.facts


def table(rows: dict[str, dict[str, str]]) -> Iterator[str]:
    """The lines of a table, a dump a row."""
    names = list(next(iter(rows.values()), {}))
    yield "| kernel | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for kernel, row in rows.items():
        yield f"| {kernel} | " + " | ".join(row.get(name, NONE) for name in names) + " |"


def page() -> str:
    """The document."""
    kept = {name: cells(make(), CHECKS) for name, make in FIXTURES.items()}
    whole = json.loads(WHOLE.read_text())
    return HEAD + "\n".join(table(kept)) + "\n" + BETWEEN + "\n".join(table(whole)) + "\n"


HEAD = """# What dumps tell without a file beside them, kernel by kernel

Made by `python tests/kernel_page.py`; `tests/unit/images/test_kernel_page.py` fails if this page says anything else
than what the dumps of `tests/data` give.

Each cell says how many of the truth's items kvmd gives exactly so, from the dump alone. The truth of symbols,
processes, argv and environ is the guest's own /proc; that of members (offset and size of about 100 of structs that
kvmd reads), tasks (threads, by address), log and stacks (return addresses of every task, and of what each CPU ran) is
drgn's with the DWARF vmlinux of the same build. "-": nothing was recorded. Strings that are missing were swapped out,
or left out when the dump was made small. "VMCOREINFO": where it was found: the dump's note, its text in memory, or made
anew from kallsyms, the banner and the page tables. "No note": as QEMU dumps a guest without its vmcoreinfo device; "no
VMCOREINFO": as of a kernel that was built without it, too: since 7.0 such a kernel is not found if it is arm64's, or if
it has no KALLSYMS_ALL either (NO_VMCOREINFO). "symbols by": `kallsyms`, told by VMCOREINFO (since 6.0), or `scan`; of a
kernel without KALLSYMS_ALL the data objects count among the symbols; without VMCOREINFO one to three of those that only
drgn's helpers look at (`node_states`, `vm_zone_stat`, `vm_node_stat`) are not found.

## Small dumps, in the repository

Kernels of Debian's own build are called so; the others are small ones, built of the source of 5.10.223, 5.15.100 (which
Debian has never had), 6.1.176 and 6.1.192. The vmlinux of the latter, of the rows "6.1" and "6.1, 5 levels", is gone:
their truth is of one that was built again of the same source and configuration, by the same compiler, and whose
symbols, but for 52 at the end of BTF, are those of the guest. That kernel has no ORC, and kvmd unwinds no stacks of
s390x: there are none to compare.

"""
BETWEEN = """
## Whole dumps

Of kernels that ran Debian 12 with systemd in 768 MiB of memory, booted, dumped and compared by `python
tests/guest/kernels.py` (`tests/data/kernels.json`). 5.10, 6.1, 6.12 and 7.2 are Debian's cloud kernels, of x86-64 but
for arm64's, of which that of 6.1 has no KALLSYMS_ALL; "16k": Debian's for pages of 16 KiB, and 52 bits. 5.15 and the
kernel of x86-64 without KALLSYMS_ALL were built of 5.15.100 and 6.1.176 by `tests/guest/build_kernel`, since Debian
has neither. Here the log is what /dev/kmsg gave, and stacks are compared with /proc/PID/stack, too, of every task
that had not run any more before the dump. "No device": dumped by QEMU without its vmcoreinfo device; "no VMCOREINFO":
built without CONFIG_CRASH_CORE; "wiped": dumped without the device, and with VMCOREINFO taken out of memory. How long
it takes: `python -m bench.scan`.

"""


if __name__ == "__main__":
    PAGE.write_text(page())
