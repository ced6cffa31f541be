"""Stacks of real dumps, against what drgn unwound with the DWARF vmlinux of the same build; and damaged ones.

``stacks.json`` and ``orc.xz`` were made by tests/guest/stack_truth.py: the small dumps lack the kernel's own tables.
"""

from __future__ import annotations

import json
import lzma
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from images import DATA
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.cpus import Cpus
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.stack import Stacks
from kvmd.images.linux.tasks import Tasks
from kvmd.images.linux.unwind import MAX_FRAMES
from kvmd.images.linux.unwinders import OrcUnwinder
from kvmd.v1 import process_pb2, stack_pb2
from overlay import Overlay

from .conftest import Opened

FOLDER = DATA / "debian-6.1-panic"
TRUTH: dict[str, Any] = json.loads((FOLDER / "stacks.json").read_text())
BOTTOM, USER = stack_pb2.STACK_END_BOTTOM, stack_pb2.STACK_END_USER
FAULT, CORRUPT = stack_pb2.STACK_END_FAULT, stack_pb2.STACK_END_CORRUPT


@pytest.fixture(scope="module")
def tables() -> bytes:
    return lzma.decompress((FOLDER / "orc.xz").read_bytes())


@pytest.fixture
def whole(debian: Opened, tables: bytes) -> Overlay:
    """The kernel of the Debian dump, with its ORC tables and some of its code."""
    return completed(debian.image.kernel, tables)


def completed(kernel: Kernel, tables: bytes) -> Overlay:
    code = {int(pc) - 5: bytes.fromhex(text) for pc, text in TRUTH["calls"].items()}
    return Overlay(kernel, {kernel.address("__start_orc_unwind_ip"): tables} | code)


@pytest.fixture
def stacks(whole: Overlay) -> Stacks:
    return made(whole)


def made(kernel: Overlay) -> Stacks:
    return Stacks(kernel, Tasks(kernel))  # type: ignore[arg-type] # stands for a Kernel


def one(stacks: Stacks, pid: int = 2) -> stack_pb2.Stack:
    (stack,) = stacks.select(stack_pb2.GetStackRequest(pid=pid))
    return stack


def physical(frames: list[list[Any]]) -> list[list[Any]]:
    """Without the inlined, and without what drgn makes of a stack that is gone: no function at all."""
    return [frame for frame in frames if not frame[2] and not frame[1].startswith("0x")]


def alike(ours: stack_pb2.Frame, theirs: list[Any]) -> bool:
    # DWARF leaves out what the compiler added to a name, has no labels inside a function, and knows system calls
    # without arguments by their other name.
    name = ours.symbol.split(".")[0].removesuffix("_after_hwframe")
    if theirs[1].startswith("__do_sys_"):
        name = name.replace("__x64_sys_", "__do_sys_")
    interrupted = ours.kind == stack_pb2.FRAME_KIND_INTERRUPTED
    return ours.pc == theirs[0] and name == theirs[1].split(".")[0] and interrupted == theirs[3]


def check(stack: stack_pb2.Stack, theirs: list[list[Any]]) -> None:
    theirs = physical(theirs)
    assert len(stack.frames) == len(theirs) > 0, stack
    assert [pair for pair in zip(stack.frames, theirs, strict=True) if not alike(*pair)] == []
    assert stack.end == (USER if stack.frames[-1].symbol.startswith("entry_SYSCALL_64") else BOTTOM)
    assert not stack.HasField("error")


def test_every_task_as_drgn_has_it_with_dwarf(stacks: Stacks) -> None:
    found = {stack.pid: stack for stack in stacks.select(stack_pb2.GetStackRequest())}
    assert len(TRUTH["tasks"]) == 76
    assert sorted(found) == sorted(map(int, TRUTH["tasks"]))
    running = {stack.cpu: stack.pid for stack in found.values() if stack.HasField("cpu")}
    assert sorted(running) == [0, 1]
    for pid, stack in found.items():
        if pid == running[0]:  # which was in user space
            assert (list(stack.frames), stack.end, TRUTH["tasks"][str(pid)]) == ([], USER, [])
        elif stack.end == stack_pb2.STACK_END_NO_STACK:
            assert (pid, physical(TRUTH["tasks"][str(pid)])) == (150, [])  # a zombie
        else:
            check(stack, TRUTH["tasks"][str(pid)])


def test_the_cpu_that_panicked(stacks: Stacks) -> None:
    (stack,) = stacks.select(stack_pb2.GetStackRequest(cpu=1))
    check(stack, TRUTH["cpus"]["1"])
    assert [frame.symbol for frame in stack.frames][:4] == [
        *("__crash_kexec", "panic", "sysrq_handle_crash", "__handle_sysrq.cold")
    ]
    assert stack.cpu == 1
    assert stack.frames[0].kind == stack_pb2.FRAME_KIND_INTERRUPTED
    # The kernel has no row for __crash_kexec; its caller was searched for.
    assert [frame.kind for frame in stack.frames[1:3]] == [stack_pb2.FRAME_KIND_FOUND, stack_pb2.FRAME_KIND_CALL]
    assert stack.frames[1].offset == stack.frames[1].pc - TRUTH_SYMBOLS["panic"][0]


def test_a_cpu_that_switches_tasks_runs_the_one_whose_stack_it_is_on(whole: Overlay) -> None:
    """__switch_to has the next task's stack, and makes it the current one only at its end."""
    cpu = next(c for c in Cpus(whole).describe().cpus if c.number == 1)  # type: ignore[arg-type]
    place = whole.address("current_task") + cpu.offset & (1 << 64) - 1
    panicked, other = cpu.current_task, TASKS[2]
    whole.put(place, other)
    stacks = made(whole)
    (stack,) = stacks.select(stack_pb2.GetStackRequest(cpu=1))
    assert (stack.task_address, stack.cpu) == (panicked, 1)
    check(stack, TRUTH["cpus"]["1"])
    assert not one(stacks, 2).HasField("cpu")
    whole.put(place, panicked)
    rq = whole.prog.type("struct rq").member("curr").offset
    whole.put(whole.address("runqueues") + cpu.offset + rq & (1 << 64) - 1, other)  # chosen, not switched to yet
    (stack,) = made(whole).select(stack_pb2.GetStackRequest(cpu=1))
    assert stack.task_address == panicked


TASKS = {pid: address for pid, _, address in json.loads((FOLDER / "dwarf.json").read_text())["tasks"]}
TRUTH_SYMBOLS = json.loads((FOLDER / "dwarf.json").read_text())["symbols"]


def test_all_is_one_walk_with_errors_of_its_own(whole: Overlay) -> None:
    # The last word of one task's thread_struct that is needed: a stack pointer that leads nowhere.
    first = one(made(whole), 3)
    fields = made(whole)._task.offsets  # type: ignore[attr-defined]
    whole.put(first.task_address + fields["sp"], 0xFFFF_8880_0000_0000 - 64)
    found = {stack.pid: stack for stack in made(whole).select(stack_pb2.GetStackRequest())}
    assert len(found) == 76
    assert found[3].error.reason in ("NOT_MAPPED", "BEYOND_DUMP")
    assert (found[3].comm, found[3].task_address) == (b"rcu_gp", first.task_address)
    assert found[4].end == BOTTOM
    with pytest.raises(KvmError) as failure:
        one(made(whole), 3)
    assert failure.value.reason.value == found[3].error.reason


@pytest.mark.parametrize(("request_", "reason"), [({"pid": 99999}, "NO_SUCH_PROCESS"), ({"cpu": 7}, "BAD_ARGUMENT")])
def test_what_is_not_there(stacks: Stacks, request_: dict[str, int], reason: str) -> None:
    with pytest.raises(KvmError) as failure:
        list(stacks.select(stack_pb2.GetStackRequest(**request_)))
    assert failure.value.reason.value == reason


def test_dumps_without_tables_say_where_they_stop(dump: Opened) -> None:
    """The small dumps were made without the kernel's code and tables."""
    states = {process.pid: process.state for process in dump.image.processes(process_pb2.GetProcsRequest())}
    found = list(dump.image.stacks(stack_pb2.GetStackRequest()))
    assert len(found) >= 50
    for stack in found:
        if stack.end == FAULT:
            assert len(stack.frames) == 1
            # makedumpfile's ELF files have zeroes for what they leave out.
            assert stack.error.reason in ("EXCLUDED", "UNSUPPORTED" if dump.name.endswith(".elfd") else "")
            if not stack.HasField("cpu"):
                assert stack.frames[0].symbol in ("__schedule", "ret_from_fork"), stack
        elif stack.end == USER:
            assert stack.HasField("cpu")
        else:
            assert stack.end == stack_pb2.STACK_END_NO_STACK
            assert states[stack.pid] == "Z", stack


def test_nobody_saved_the_registers(debian: Opened, tables: bytes) -> None:
    kernel = completed(debian.image.kernel, tables)
    notes = debian.image.kernel.builtin("crash_notes")
    assert notes is not None
    kernel.put(notes.value, 0)
    stacks = made(kernel)
    # A panic's dump file has the notes, too.
    (stack,) = stacks.select(stack_pb2.GetStackRequest(cpu=1))
    check(stack, TRUTH["cpus"]["1"])
    stacks._registers.__dict__["_in_file"] = {}
    with pytest.raises(KvmError) as failure:
        list(stacks.select(stack_pb2.GetStackRequest(cpu=1)))
    assert failure.value.reason is Reason.TASK_RUNNING


def test_a_stack_that_is_gone(whole: Overlay) -> None:
    address = one(made(whole)).task_address
    whole.put(address + made(whole)._task.offsets["stack"], 0)  # type: ignore[attr-defined]
    stack = one(made(whole))
    assert (list(stack.frames), stack.end) == ([], stack_pb2.STACK_END_NO_STACK)


def test_a_frame_in_a_module(whole: Overlay) -> None:
    """Code of a module has its name, and the module's own table takes the walk on."""
    stacks = made(whole)
    module = next(m for m in stacks._code.modules if m.table and m.table.length > 100)
    address = one(stacks).task_address
    sp = whole_sp(whole, stacks, address)
    symbols = stacks._code._symbols(module)
    # A function that pushed nothing yet: what called it lies on top of the stack.
    start, name = next(s for s in symbols if (row := stacks._code.row(s[0])) and row.sp_offset == 8)
    returns = int.from_bytes(whole.memory.kernel(sp + 48, 8), "little")
    assert isinstance(stacks._unwinder, OrcUnwinder)
    frame = stacks._unwinder._size
    whole.put(sp - 8 + 40, int.from_bytes(whole.memory.kernel(sp + 40, 8), "little"))
    whole.patches[sp + 48] = (start + 1).to_bytes(8, "little") + returns.to_bytes(8, "little")
    stack = one(made(whole))
    assert frame == 56
    assert (stack.frames[0].symbol, stack.frames[0].module, stack.frames[0].offset) == (name, module.name, 1)
    assert (stack.frames[1].symbol, stack.frames[1].module) == ("__schedule", "")


def whole_sp(kernel: Overlay, stacks: Stacks, address: int) -> int:
    data = kernel.memory.kernel(address + stacks._task.offsets["sp"], 8)  # type: ignore[attr-defined]
    return int.from_bytes(data, "little")


def words(kernel: Overlay, at: int, *values: int) -> None:
    kernel.patches[at] = b"".join((value & (1 << 64) - 1).to_bytes(8, "little") for value in values)


ENDS = [
    (0x41414141, CORRUPT),  # no address of the kernel's
    (0xFFFF_FFFF_FFFF_F000, stack_pb2.STACK_END_NO_UNWIND),  # no code
]


@pytest.mark.parametrize(("pc", "end"), ENDS)
def test_a_return_address_that_is_none(whole: Overlay, pc: int, end: int) -> None:
    stacks = made(whole)
    sp = whole_sp(whole, stacks, one(stacks).task_address)
    words(whole, sp + 48, pc)
    stack = one(made(whole))
    assert [(f.pc, f.symbol) for f in stack.frames] == [(pc, "")]
    assert stack.end == end


def test_a_call_through_a_null_pointer_goes_on(whole: Overlay) -> None:
    stacks = made(whole)
    plain = one(stacks)
    sp = whole_sp(whole, stacks, plain.task_address)
    words(whole, sp + 40, int.from_bytes(whole.memory.kernel(sp + 40, 8), "little"), 0, plain.frames[0].pc)
    stack = one(made(whole))
    assert [frame.symbol for frame in stack.frames[:2]] == ["", "__schedule"]


def regs(kernel: Overlay, at: int, pc: int, sp: int, bp: int = 0, *, cs: int = 0x10) -> None:
    saved = [0] * 21
    saved[4], saved[16], saved[17], saved[19] = bp, pc, cs, sp
    words(kernel, at, *saved)


def test_exceptions_that_lead_in_a_circle(whole: Overlay) -> None:
    """Registers saved on the stack that say the stack goes on where it was."""
    stacks = made(whole)
    sp = whole_sp(whole, stacks, one(stacks).task_address)
    code = returns_to_registers(whole, stacks)
    words(whole, sp + 40, 0, code)
    regs(whole, sp + 56, code, sp + 56)
    stack = one(made(whole))
    assert stack.end == CORRUPT
    assert len(stack.frames) == 1


def returns_to_registers(kernel: Overlay, stacks: Stacks) -> int:
    """An address that follows a call in the code that enters exceptions: all registers lie on top of the stack."""
    entry = kernel.address("asm_exc_page_fault")
    return next(pc for pc in range(entry, entry + 48) if (r := stacks._code.row(pc - 1)) and r.kind.name == "REGS")


def test_an_exception_in_kernel_and_user_mode(whole: Overlay) -> None:
    stacks = made(whole)
    plain = one(stacks)
    sp = whole_sp(whole, stacks, plain.task_address)
    code = returns_to_registers(whole, stacks)
    offset = stacks._code.row(code - 1).sp_offset  # type: ignore[union-attr]
    high = sp + 0x200
    original = whole.memory.kernel(sp + 40, 8)
    moved = int.from_bytes(original, "little")
    words(whole, sp + 40, 0, code)
    regs(whole, sp + 56 + offset, plain.frames[0].pc, sp + 56, moved)
    regs(whole, sp + 56 + offset, plain.frames[0].pc, high, moved)
    stack = one(made(whole))
    assert [f.symbol for f in stack.frames[:2]] == ["asm_exc_page_fault", "__schedule"]
    assert [f.kind for f in stack.frames[:2]] == [stack_pb2.FRAME_KIND_CALL, stack_pb2.FRAME_KIND_INTERRUPTED]
    regs(whole, sp + 56 + offset, 0x401000, 0x7FFF0000, cs=0x33)
    stack = one(made(whole))
    assert ([f.symbol for f in stack.frames], stack.end) == (["asm_exc_page_fault"], USER)


def test_endless_frames_end(whole: Overlay) -> None:
    """A stack full of returns into code that pushed nothing: 256 frames, no more."""
    stacks = made(whole)
    address = one(stacks).task_address
    start = whole.address("schedule")
    base = 0xFFFF_8000_0000_0000
    whole.patches[base] = b"".join((start + 1).to_bytes(8, "little") for _ in range(2000))
    whole.put(address + stacks._task.offsets["sp"], base)  # type: ignore[attr-defined]
    stack = one(made(whole))
    assert stack.end == stack_pb2.STACK_END_LIMIT
    assert len(stack.frames) == MAX_FRAMES


def test_registers_of_an_unknown_numbering(whole: Overlay, tables: bytes) -> None:
    """The row of a function's first instruction must be what it always is."""
    start = whole.address("__start_orc_unwind_ip")
    rows = whole.address("__start_orc_unwind") - start
    whole.patches[start] = tables[:rows] + b"\x08\0\0\0\x0f\0" * ((len(tables) - rows) // 6)
    stack = one(made(whole))
    assert (stack.end, stack.error.reason, len(stack.frames)) == (FAULT, "UNSUPPORTED", 1)


# What 7.2 calls the registers that are numbered 0 to 9 up to 6.12; of 3, DI, its tables have none.
NEWER = (0, 8, 2, 5, 4, 3, 6, 7, 10, 9)


def test_the_numbering_of_newer_kernels(whole: Overlay, tables: bytes) -> None:
    start = whole.address("__start_orc_unwind_ip")
    rows = bytearray(tables[whole.address("__start_orc_unwind") - start :])
    pairs = {low | high << 4: NEWER[low] | NEWER[high] << 4 for low in range(10) for high in range(10)}
    rows[4::6] = rows[4::6].translate(bytes(pairs.get(byte, byte) for byte in range(256)))
    before = list(made(whole).select(stack_pb2.GetStackRequest()))
    whole.patches[start] = tables[: -len(rows)] + rows
    assert list(made(whole).select(stack_pb2.GetStackRequest())) == before


def mutated(tables: bytes, rng: random.Random) -> bytes:
    data = bytearray(tables)
    kind = rng.randrange(3)
    if kind == 0:  # a torn range
        at, size = rng.randrange(len(data)), rng.randrange(1, 1 << 18)
        data[at : at + size] = rng.randbytes(len(data[at : at + size]))
    elif kind == 1:  # rows of other functions
        at, other = (rng.randrange(1473824, len(data) - 60000) for _ in range(2))
        data[at : at + 60000] = data[other : other + 60000]
    else:  # distances that do not ascend
        data[: 1 << 20] = data[1 << 19 : (1 << 19) + (1 << 20)]
    return bytes(data)


def damaged(kernel: Overlay, tables: bytes, seeds: range) -> Iterator[tuple[int, Stacks]]:
    start = kernel.address("__start_orc_unwind_ip")
    tasks = [stack.task_address for stack in made(kernel).select(stack_pb2.GetStackRequest())]
    for seed in seeds:
        rng = random.Random(seed)
        kernel.patches = completed(kernel._kernel, tables).patches
        kernel.patches[start] = mutated(tables, rng) if seed % 3 == 0 else tables
        stacks = made(kernel)
        address = rng.choice(tasks)
        sp = whole_sp(kernel, stacks, address)
        for _ in range(rng.randrange(1, 40)):
            pointer = rng.choice([rng.randbytes(8), (sp + 8 * rng.randrange(200)).to_bytes(8, "little")])
            kernel.patches[sp + 8 * rng.randrange(120)] = pointer
        yield address, stacks


def test_damaged_stacks_and_tables_end(whole: Overlay, tables: bytes) -> None:
    ends = set()
    for address, stacks in damaged(whole, tables, range(150)):
        began = time.monotonic()
        try:
            stack = stacks.of(address)
        except KvmError:
            continue
        assert stack.end
        assert len(stack.frames) <= MAX_FRAMES
        assert time.monotonic() - began < 2
        ends.add(stack.end)
    assert len(ends) >= 4, ends
