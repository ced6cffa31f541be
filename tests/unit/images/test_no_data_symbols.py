"""Kernels built without CONFIG_KALLSYMS_ALL: Debian's for arm64, and a small one for x86-64.

``dwarf.json`` and ``stacks.json`` of these were made with drgn and the DWARF vmlinux of the same build.
"""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import drgn
import pytest

from images import DATA, fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import MAGIC
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.objects import probe
from kvmd.images.linux.symbols import N_DATA, N_EXT
from kvmd.v1 import process_pb2, stack_pb2
from kvmd.v1 import symbol_pb2 as pb
from mutate import Mutable

from .conftest import Bytes, Opened, opened

FOLDERS = ("arm64-6.1", "x86-no-data-symbols")
FOUND = {pb.SYMBOL_SOURCE_BTF, pb.SYMBOL_SOURCE_CODE, pb.SYMBOL_SOURCE_CONTENT}
# What has no section of its own to be found by: that a kernel has none is as it should be.
BOTTOM, USER = stack_pb2.STACK_END_BOTTOM, stack_pb2.STACK_END_USER


class Case(NamedTuple):
    """A dump, and what DWARF tells of its kernel."""

    name: str
    path: Path
    image: LinuxImage
    truth: dict[str, Any]
    dwarf: dict[str, Any]
    stacks: dict[str, Any]

    @property
    def kernel(self) -> Kernel:
        return self.image.kernel


@pytest.fixture(scope="module", params=FOLDERS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    folder = DATA / request.param
    path, truth = fixture(f"{request.param}/vmcore.kdump")
    dwarf, stacks = (json.loads((folder / f"{name}.json").read_text()) for name in ("dwarf", "stacks"))
    with opened(path) as image:
        yield Case(request.param, path, image, truth, dwarf, stacks)


@pytest.fixture
def memory(case: Case) -> Iterator[Mutable]:
    """A copy of the dump that a test changes."""
    with opened(case.path) as image:
        changed = Mutable(case.path, image.kernel)
        yield changed
        changed.close()


def value(case: Case, name: str) -> int:
    address: int = case.dwarf["objects"][name][0]
    return address


def offset(case: Case, struct: str, member: str) -> int:
    at: int = case.kernel.prog.type(f"struct {struct}").member(member).offset
    return at


def test_the_symbol_table_has_functions_only(case: Case) -> None:
    assert case.kernel.symbols_source == "kallsyms"
    assert case.kernel.written("schedule") is not None
    assert case.kernel.written("init_task") is None
    assert case.kernel.written("__start_BTF") is None


def test_every_object_lies_where_dwarf_has_it(case: Case) -> None:
    names = list(case.dwarf["objects"])
    answer = case.image.symbols(names)
    assert {s.name: s.value for s in answer if s.found} == {name: value(case, name) for name in names}
    assert {s.source for s in answer if s.name != "prb"} <= FOUND  # which VMCOREINFO tells of
    assert all(s.n_type & ~N_EXT == N_DATA for s in answer)
    assert len(names) >= 35


def test_where_values_come_from(case: Case) -> None:
    names = ["init_task", "avenrun", "runqueues", "init_uts_ns", "schedule"]
    assert [s.source for s in case.image.symbols(names)] == [
        *(pb.SYMBOL_SOURCE_CONTENT, pb.SYMBOL_SOURCE_CODE, pb.SYMBOL_SOURCE_BTF),
        *(pb.SYMBOL_SOURCE_VMCOREINFO, pb.SYMBOL_SOURCE_KALLSYMS),
    ]


def test_what_is_not_there_is_not_found(case: Case) -> None:
    absent = ["no_such_symbol", "zswap_trees", "__start_BTF", "pcpu_hot"]
    assert [s.found for s in case.image.symbols(absent)] == [False] * len(absent)


def test_struct_members_lie_where_dwarf_has_them(case: Case) -> None:
    prog, wrong = case.kernel.prog, {}
    for name, expected in case.dwarf["members"].items():
        struct, _, member = name.partition(".")
        found = prog.type(f"struct {struct}").member(member)
        size = found.bit_field_size or 8 * drgn.sizeof(found.type)
        if [found.bit_offset, size] != expected:
            wrong[name] = found.bit_offset, size
    assert wrong == {}
    assert len(case.dwarf["members"]) >= (100 if case.name == "arm64-6.1" else 90)
    assert {name: drgn.sizeof(prog.type(f"struct {name}")) for name in case.dwarf["sizes"]} == case.dwarf["sizes"]


def test_tasks_are_drgns(case: Case) -> None:
    listed = case.image.processes(process_pb2.GetProcsRequest(threads=True))
    assert sorted([p.pid, p.comm.decode(), p.task_address] for p in listed) == case.dwarf["tasks"]


def alike(ours: stack_pb2.Frame, theirs: list[Any]) -> bool:
    plain = ours.symbol.split(".")[0].removesuffix("_after_hwframe").replace("__x64_sys_", "__do_sys_")
    names = {plain, ours.symbol.split(".")[0]}
    return ours.pc == theirs[0] and (theirs[1].split(".")[0] in names or theirs[1].startswith("0x"))


def test_stacks_are_drgns_with_dwarf(case: Case) -> None:
    found = {stack.pid: stack for stack in case.image.stacks(stack_pb2.GetStackRequest()) if stack.pid}
    assert sorted(found) == sorted(map(int, case.stacks["tasks"]))
    compared = 0
    for pid, stack in found.items():
        if stack.end == stack_pb2.STACK_END_NO_STACK:  # a zombie
            continue
        theirs = [f for f in case.stacks["tasks"][str(pid)] if not f[2] and not f[1].startswith("0x")]
        assert len(stack.frames) == len(theirs), (pid, stack, theirs)
        assert [pair for pair in zip(stack.frames, theirs, strict=True) if not alike(*pair)] == []
        user = not stack.frames or stack.frames[-1].symbol.startswith(("entry_SYSCALL_64", "el0"))
        assert stack.end == (USER if user else BOTTOM), stack
        compared += 1
    assert compared > 50
    for cpu, expected in case.stacks["cpus"].items():
        (stack,) = case.image.stacks(stack_pb2.GetStackRequest(cpu=int(cpu)))
        assert [f.pc for f in stack.frames] == [f[0] for f in expected if not f[2]]


def test_it_takes_no_longer_than_it_may(case: Case) -> None:
    """From nothing to a list of processes; the issue allows 5 s to search 1 GiB."""
    started = time.monotonic()
    with opened(case.path) as image:
        assert sum(1 for _ in image.processes(process_pb2.GetProcsRequest())) > 50
    assert time.monotonic() - started < 5


def refused(image: LinuxImage, reason: Reason, ask: Callable[[LinuxImage], object]) -> KvmError:
    started = time.monotonic()
    with pytest.raises(KvmError) as caught:
        ask(image)
    assert caught.value.reason is reason, caught.value.message
    assert time.monotonic() - started < 10
    return caught.value


def processes(image: LinuxImage) -> list[process_pb2.Process]:
    return list(image.processes(process_pb2.GetProcsRequest()))


def fake_init_task(case: Case, memory: Mutable, at: int) -> None:
    """A copy of init_task that is a list of its own."""
    size = drgn.sizeof(case.kernel.prog.type("struct task_struct"))
    data = bytearray(case.kernel.memory.kernel(value(case, "init_task"), size))
    links = at + offset(case, "task_struct", "tasks")
    for member in ("parent", "real_parent", "group_leader"):
        place = offset(case, "task_struct", member)
        data[place : place + 8] = at.to_bytes(8, "little")
    place = offset(case, "task_struct", "tasks")
    data[place : place + 16] = links.to_bytes(8, "little") * 2
    memory.kernel(at, bytes(data))


def room(case: Case) -> int:
    """A place in the kernel's data that is large, and that nothing here needs: the printk buffer's text."""
    ring = case.kernel.prog["prb"].text_data_ring
    return (int(ring.data.value_()) + 4095) & -4096


def test_a_second_init_task_is_an_error_not_a_guess(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    at = room(case)
    fake_init_task(case, memory, at)
    e = refused(from_bytes(bytes(memory.data)), Reason.AMBIGUOUS, processes)
    assert e.metadata["symbol"] == "init_task"
    assert f"{at:#x}" in e.message
    assert f"{value(case, 'init_task'):#x}" in e.message
    refused(from_bytes(bytes(memory.data)), Reason.AMBIGUOUS, lambda image: image.symbols(["init_task"]))


@pytest.mark.parametrize("member", ["pid", "real_parent", "tasks", "mm"])
def test_a_copy_that_contradicts_itself_is_none(case: Case, memory: Mutable, from_bytes: Bytes, member: str) -> None:
    at = room(case)
    fake_init_task(case, memory, at)
    memory.word(at + offset(case, "task_struct", member), 0x1234_5678, 4)
    found = processes(from_bytes(bytes(memory.data)))
    assert len(found) == len(processes(case.image))


def test_without_init_task_there_is_no_list(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    memory.kernel(value(case, "init_task") + offset(case, "task_struct", "comm"), b"sleeper/0")
    e = refused(from_bytes(bytes(memory.data)), Reason.NO_SYMBOLS, processes)
    assert "init_task" in e.message


def btf_places(case: Case) -> list[int]:
    """Where the kernel's BTF stands; the small x86-64 kernel has a second copy, left by its decompressor."""
    assert case.kernel.image is not None
    found = list(case.kernel.image.find(MAGIC.to_bytes(2, "little") + b"\x01\x00\x18\0\0\0", 4))
    return [at for at in found if int.from_bytes(case.kernel.memory.kernel(at + 20, 4), "little") > 1 << 18]


@pytest.mark.parametrize(
    ("at", "number"),
    [(8, 4), (12, 0xFFFF_FFFC), (12, 4), (16, 0), (20, 0xFFFF_FFFF), (20, 0), (4, 0x1000_0000), (2, 0x0202)],
)
def test_headers_that_do_not_add_up(case: Case, memory: Mutable, from_bytes: Bytes, at: int, number: int) -> None:
    for place in btf_places(case):
        memory.word(place + at, number, 4)
    e = refused(from_bytes(bytes(memory.data)), Reason.NO_TYPES, processes)
    assert "execfile" in e.message


def test_types_in_a_circle(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    """The first records say that they are of each other."""
    records = b"".join(struct.pack("<III", 0, 9 << 24, 2) for _ in range(64))
    for place in btf_places(case):
        memory.kernel(place + 24, records)
    refused(from_bytes(bytes(memory.data)), Reason.NO_TYPES, processes)


def test_btf_of_another_kernel_is_not_taken(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    """VMCOREINFO tells sizes: of list_head, 16 bytes."""
    data = bytes(memory.data).replace(b"SIZE(list_head)=16\n", b"SIZE(list_head)=24\n")
    assert data != memory.data
    refused(from_bytes(data), Reason.NO_TYPES, processes)


def test_a_second_offset_table(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    """Overwriting what is looked for must give an error, never another value."""
    table = value(case, "__per_cpu_offset")
    memory.word(table + 8, 0x1000)
    image = from_bytes(bytes(memory.data))
    assert not image.symbols(["runqueues"])[0].found
    refused(image, Reason.NO_SYMBOLS, lambda image: image.cpus())


def test_lists_that_do_not_close_end(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    """super_blocks leads to itself without its head."""
    if case.name == "arm64-6.1":
        head = value(case, "net_namespace_list")
        first = int.from_bytes(case.kernel.memory.kernel(head, 8), "little")
        memory.word(first, first)
        assert not from_bytes(bytes(memory.data)).symbols(["net_namespace_list"])[0].found
    else:
        head = value(case, "slab_caches")
        first = int.from_bytes(case.kernel.memory.kernel(head, 8), "little")
        memory.word(first + 8, first)
        assert not from_bytes(bytes(memory.data)).symbols(["slab_caches"])[0].found


def test_other_dumps_are_not_searched(qemu: Opened) -> None:
    """Where the symbol table has data, what it doesn't have isn't there."""
    assert qemu.image.kernel.written("init_task") is not None
    assert not qemu.image.symbols(["modules", "no_such_symbol"])[0].found
    assert "_objects" not in qemu.image.kernel.__dict__ or qemu.image.kernel._objects("avenrun") is None


@pytest.mark.parametrize(
    ("name", "size"), [("linux_banner", 512), ("init_mm", None), ("shmem_aops", None), ("mem_section", 8)]
)
def test_two_that_pass_are_an_error(
    case: Case, memory: Mutable, from_bytes: Bytes, name: str, size: int | None
) -> None:
    if name not in case.dwarf["objects"]:  # without CONFIG_SHMEM
        assert not case.image.symbols([name])[0].found
        return
    types = {"init_mm": "mm_struct", "shmem_aops": "address_space_operations"}
    if size is None:
        size = drgn.sizeof(case.kernel.prog.type(f"struct {types[name]}"))
    at = room(case)
    memory.kernel(at, case.kernel.memory.kernel(value(case, name), size))
    e = refused(from_bytes(bytes(memory.data)), Reason.AMBIGUOUS, lambda image: image.symbols([name]))
    assert e.metadata["symbol"] == name
    assert f"{at:#x}" in e.message
    assert "execfile" in e.message


@pytest.mark.parametrize("mask", [0, 5])
def test_possible_cpus_are_those_with_runqueues(
    case: Case, memory: Mutable, from_bytes: Bytes, mask: int
) -> None:
    memory.word(value(case, "__cpu_possible_mask"), mask)
    image = from_bytes(bytes(memory.data))
    names = ["__cpu_possible_mask", "__cpu_online_mask", "nr_cpu_ids", "__per_cpu_offset", "runqueues"]
    assert not any(symbol.found for symbol in image.symbols(names))
    refused(image, Reason.NO_SYMBOLS, lambda image: image.cpus())


@pytest.mark.parametrize("member", ["cpu", "idle"])
def test_a_runqueue_that_is_another_cpus(case: Case, memory: Mutable, from_bytes: Bytes, member: str) -> None:
    table = case.kernel.memory.kernel(value(case, "__per_cpu_offset"), 8)
    queue = value(case, "runqueues") + int.from_bytes(table, "little") & (1 << 64) - 1
    memory.word(queue + offset(case, "rq", member), 7, 4)
    assert not from_bytes(bytes(memory.data)).symbols(["runqueues"])[0].found


@pytest.mark.parametrize("seed", [1])
def test_torn_data_ends_with_an_answer_soon(case: Case, memory: Mutable, from_bytes: Bytes, seed: int) -> None:
    """Random words all over the kernel's data: what is found lies where it lay, as far as it can be proved."""
    rng = random.Random(seed)
    assert case.kernel.image is not None
    end = case.kernel.address("_etext")
    for _ in range(4000):
        run = rng.choice(case.kernel.image.runs)
        with suppress(KvmError, AssertionError):  # where the dump holds nothing
            at = rng.randrange(max(run.start, end), run.stop, 8)
            memory.word(at, rng.choice([0, 1, at, rng.getrandbits(64), value(case, "init_task")]))
    started, image = time.monotonic(), from_bytes(bytes(memory.data))
    strong = "init_task", "init_mm", "linux_banner", "runqueues", "init_net", "__cpu_possible_mask"
    for name in case.dwarf["objects"]:
        try:
            (symbol,) = image.symbols([name])
        except KvmError as e:
            assert e.reason in (Reason.AMBIGUOUS, Reason.NO_TYPES, Reason.CORRUPT_DATA)
        else:
            assert not symbol.found or name not in strong or symbol.value == value(case, name)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("name", ["init_task", "slab_caches", "runqueues"])
def test_the_search_is_bounded(case: Case, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(probe, "_READS", 10)
    with opened(case.path) as image:
        for _ in range(2):  # a failure is remembered
            e = refused(image, Reason.AMBIGUOUS, lambda image: image.symbols([name]))
            assert "too many" in e.message
        assert image.symbols(["schedule"])[0].found
