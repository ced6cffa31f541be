"""A kernel of s390x, which is big-endian: what other dumps are asked, is asked of its, too.

``dwarf.json`` was made with drgn and the DWARF vmlinux of the same build. QEMU's dump had no VMCOREINFO.
"""

from __future__ import annotations

import inspect
import json
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import drgn
import pytest
from drgn.helpers.linux.fs import for_each_mount, mount_dst
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import for_each_slab_cache

from images import DATA, fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.index import make
from kvmd.images.linux.kdump import KdumpLayout
from kvmd.images.linux.source import FileSource
from kvmd.v1 import batch_pb2, memory_pb2, process_pb2, stack_pb2
from kvmd.v1 import symbol_pb2 as pb
from kvmd.worker.following import ListWalk
from withheld import withheld

from . import (
    test_files,
    test_info,
    test_processes,
    test_strings,
    test_swapinfo,
    test_symbols,
    test_system,
    test_user,
    test_walk,
)
from .conftest import Bytes, Opened, Opener, opened
from .swap import test_older_dumps
from .test_elfcore import big_endian_core

NAME = "s390x-6.1/vmcore.kdump"
SWAP = "s390x-6.1/swap.img"
FILE, DISK = "s390x-6.1/swapfile.img", "s390x-6.1/swapfs.img"
TRUTH: dict[str, Any] = json.loads((DATA / "s390x-6.1/dwarf.json").read_text())
KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
USER = memory_pb2.ADDRESS_SPACE_USER
PAGE = 4096
OTHERWISE = {
    # They are of x86-64: its symbols and addresses, and what time an idle CPU counts where.
    *("test_facts_are_what_the_guest_said", "test_sleep_is_counted_apart"),
    *("test_a_client_reaches_per_cpu_variables_by_symbol_and_offset", "test_pages_ascend_within_the_kernels_half"),
    *("test_direct_addresses", "test_the_kernels_half_is_no_memory_of_a_process"),
    # This dump holds what kvmd reads, and not all that drgn does.
    *("test_drgn_reads_the_same", "test_drgn_translates_the_same", "test_a_huge_page_is_read_whole"),
    *("test_the_log_is_drgns", "test_nothing_is_mapped_at_zero"),
}


def asked_of_others() -> Iterator[tuple[str, Any]]:
    """The tests of other dumps, and what they are given beside the dump."""
    modules = (test_files, test_info, test_processes, test_strings, test_swapinfo, test_symbols, test_system)
    for module in (*modules, test_user, test_walk):
        for name, thing in vars(module).items():
            wants_dump = inspect.isfunction(thing) and "dump" in inspect.signature(thing).parameters
            if name.startswith("test_") and wants_dump and name not in OTHERWISE:
                yield name, thing
    yield "listed", test_walk.listed


globals().update(asked_of_others())


@pytest.fixture(scope="module")
def dump() -> Iterator[Opened]:
    path, truth = fixture(NAME)
    with opened(path) as image:
        yield Opened(image, truth, NAME)


@pytest.fixture
def prog(dump: Opened) -> drgn.Program:
    dump.image.kernel.need_types()
    return dump.image.kernel.prog


def test_tests_of_others_were_found() -> None:
    assert len(dict(asked_of_others())) >= 30


def test_facts(dump: Opened) -> None:
    info, truth = dump.image.info(), dump.truth
    for name in ("release", "version", "machine", "nodename", "banner", "page_size", "cpus_online"):
        assert getattr(info, name) == truth[name]
    assert (info.format, info.symbols, info.types, info.machine) == ("kdump-raw", "kallsyms", "btf", "s390x")
    assert (info.paging_levels, info.kaslr_offset, info.taint) == (3, 0, "")
    assert [round(x, 2) for x in info.load_average] == [float(x) for x in truth["loadavg"].split()[:3]]
    assert 0 <= info.uptime_ns - truth["boottime_ns"] < 10 * 10**9
    assert 0 <= info.time_ns - truth["realtime_ns"] < 10 * 10**9


def test_the_truth_is_large_enough() -> None:
    assert [len(TRUTH[of]) for of in ("members", "tasks", "log")] == [104, 58, 75]


@pytest.mark.parametrize("name", TRUTH["members"])
def test_members_lie_where_dwarf_has_them(prog: drgn.Program, name: str) -> None:
    """Bit fields, too, which are counted from the other end."""
    tag, _, member = name.partition(".")
    found = prog.type(f"struct {tag}").member(member)
    assert [found.bit_offset, found.bit_field_size or 8 * drgn.sizeof(found.type)] == TRUTH["members"][name]


def test_sizes_and_constants(prog: drgn.Program) -> None:
    assert {name: drgn.sizeof(prog.type(f"struct {name}")) for name in TRUTH["sizes"]} == TRUTH["sizes"]
    assert {name: prog[name].value_() for name in TRUTH["constants"]} == TRUTH["constants"]


def test_symbols_lie_where_dwarf_has_them(dump: Opened) -> None:
    for of in ("symbols", "objects"):
        answer = dump.image.symbols(list(TRUTH[of]))
        assert {symbol.name: symbol.value for symbol in answer} == {name: at for name, (at, _) in TRUTH[of].items()}
    schedule, task = dump.image.symbols(["schedule", "init_task"])
    assert (schedule.source, schedule.n_type & ~1, task.n_type & ~1) == (pb.SYMBOL_SOURCE_KALLSYMS, 4, 6)


def test_drgn_lists_what_it_lists_with_dwarf(prog: drgn.Program) -> None:
    tasks = sorted([task.pid.value_(), task.comm.string_().decode(), task.value_()] for task in for_each_task(prog))
    assert tasks == TRUTH["tasks"]
    assert sorted(cache.name.string_().decode() for cache in for_each_slab_cache(prog)) == TRUTH["caches"]
    assert sorted(mount_dst(mount).decode() for mount in for_each_mount(prog)) == TRUTH["mounts"]


def escaped(text: bytes) -> str:
    """As dwarf_truth.py writes it."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte != ord("\\") else f"\\x{byte:02x}" for byte in text)


def test_the_log(dump: Opened) -> None:
    records = [[record.sequence, escaped(record.text)] for record in dump.image.log()]
    assert records == TRUTH["log"]


def test_pages_lie_where_the_guest_said(dump: Opened) -> None:
    """/proc/PID/pagemap told the physical address of each, and the swap slot of those that were out."""
    kernel, image, seen = dump.image.kernel, dump.image, {True: 0, False: 0}
    tables = kernel.memory.walkable()
    for page in dump.truth["pages"]:
        mm: Any = image._user._mm(image._processes.memory(page["pid"]))
        root = kernel.memory.translate(mm["pgd"]).physical
        if page["present"]:
            assert tables.translate(root, page["vaddr"]).physical == page["paddr"]
        elif page["swapped"]:
            with pytest.raises(KvmError) as caught:
                tables.translate(root, page["vaddr"])
            known = image._pages._decoder.decode(int(caught.value.metadata["entry"], 16))
            assert (caught.value.reason, known.type, known.offset) == (
                *(Reason.NOT_PRESENT, page["swap_type"], page["swap_offset"]),
            )
        seen[page["present"]] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize("file", [FILE, DISK])
def test_what_was_swapped_out(open_with: Opener, file: str) -> None:
    image, truth = open_with(NAME, (SWAP, file)), fixture(NAME).truth
    areas = [(area.kind, area.satisfied_by) for area in image.swap_areas()]
    assert areas == [("partition", "swap.img"), ("file", file.partition("/")[2])]
    out = [page for page in truth["pages"] if page["swapped"]]
    assert len(out) == 39
    for page in out:
        got = image.read(page["vaddr"], PAGE, USER, page["pid"])
        assert page["what"] == "argenv" or got == test_older_dumps.pattern(page)
    for process in image.processes(process_pb2.GetProcsRequest(arguments=True)):
        told = next(p["argv"] for p in truth["processes"] if p["pid"] == process.pid)
        assert [value.decode("utf-8", "surrogateescape") for value in process.arguments.values] == told


def test_what_was_swapped_out_is_not_made_up(dump: Opened) -> None:
    reasons = set()
    for page in dump.truth["pages"]:
        if page["swapped"]:
            try:
                got = dump.image.read(page["vaddr"], PAGE, USER, page["pid"])
                assert page["name"] == "cached"
                assert page["what"] == "argenv" or got == test_older_dumps.pattern(page)
            except KvmError as e:
                reasons.add(e.reason)
    assert reasons == {Reason.NOT_PRESENT}


def test_swapped_images_of_other_machines(open_with: Opener) -> None:
    """Their headers are of the other byte order."""
    with pytest.raises(KvmError) as caught:
        open_with(NAME, ("arm64-6.1/swap.img",)).swap_areas()
    assert caught.value.reason is Reason.SWAP_FOREIGN


def test_the_direct_mapping_begins_with_memory(dump: Opened) -> None:
    pages = list(dump.image.pages(0))
    assert {page.direct_address - page.physical_address for page in pages if page.HasField("direct_address")} == {0}
    assert pages[0].virtual_address == 0
    assert max(page.virtual_address for page in pages) < 1 << 42


@pytest.mark.parametrize("address", [1 << 42, 1 << 53, 1 << 63, (1 << 64) - 8])
@pytest.mark.parametrize("space", [KERNEL, USER])
def test_what_three_levels_do_not_reach(dump: Opened, address: int, space: memory_pb2.AddressSpace) -> None:
    with pytest.raises(KvmError) as caught:
        dump.image.read(address, 8, space, 1)
    assert (caught.value.reason, caught.value.address) == (Reason.NOT_MAPPED, address)


def test_stacks_are_refused(dump: Opened) -> None:
    with pytest.raises(KvmError, match="stacks of this S390X kernel") as caught:
        list(dump.image.stacks(stack_pb2.GetStackRequest()))
    assert caught.value.reason is Reason.UNSUPPORTED


def test_without_data_symbols_types_are_found_and_objects_are_not() -> None:
    """As Debian builds these kernels, but for BTF; machine code of s390x is not read."""
    with withheld(fixture(NAME).path) as (kernel, table):
        assert table("init_task") is not None
        assert drgn.sizeof(kernel.prog.type("struct task_struct")) == TRUTH["sizes"]["task_struct"]
        assert kernel.written("schedule") is not None
        assert kernel.symbol("init_task") is None
        with pytest.raises(KvmError) as caught:
            kernel.address("init_task")
        assert caught.value.reason is Reason.NO_SYMBOLS


def test_lists_are_followed(dump: Opened, prog: drgn.Program) -> None:
    """As WalkList does it, in the worker."""
    task = prog.type("struct task_struct")
    at = {name: drgn.offsetof(task, name) for name in ("tasks", "pid")}
    head = dump.image.kernel.address("init_task") + at["tasks"]
    request = batch_pb2.WalkListRequest(head=head, link=at["tasks"], offset=at["pid"], length=4)
    found = {element.address: int.from_bytes(element.data, "big") for element in ListWalk(dump.image, request)}
    processes = dump.image.processes(process_pb2.GetProcsRequest())
    assert found == {process.task_address: process.pid for process in processes}


def test_an_index_serves_as_memory_does(open_with: Opener, dump: Opened) -> None:
    first = open_with(NAME)
    first.symbols(["init_task"])
    list(first.processes(process_pb2.GetProcsRequest()))
    made = make(memoryview(first.index_inputs()))
    second = open_with(NAME)
    second.use_index(memoryview(made))
    names = [*TRUTH["symbols"], *TRUTH["objects"], "no_such_symbol"]
    assert second.symbols(names) == dump.image.symbols(names)
    processes = list(second.processes(process_pb2.GetProcsRequest()))
    assert processes == list(dump.image.processes(process_pb2.GetProcsRequest()))
    assert second.index_inputs() == b""  # both its symbols and its types were of use


@pytest.fixture(scope="module")
def memory() -> list[tuple[int, bytes]]:
    """The pages that the dump holds, in runs."""
    path = fixture(NAME).path
    with opened(path) as image, path.open("rb") as file:
        layout = KdumpLayout(FileSource(file.fileno()))
        return [
            (run.start, b"".join(image.read(at, PAGE, PHYSICAL) for at in range(run.start, run.stop, PAGE)))
            for run in layout.runs()
        ]


@pytest.mark.parametrize("noted", [True, False])
def test_an_elf_core_tells_the_same(
    from_bytes: Bytes, dump: Opened, memory: list[tuple[int, bytes]], *, noted: bool
) -> None:
    """Without the note VMCOREINFO is found in memory."""
    image = from_bytes(big_endian_core(memory, dump.image.kernel.info.text if noted else b""))
    mine, others = image.info(), dump.image.info()
    assert (mine.format, others.format) == ("elf", "kdump-raw")
    mine.format = others.format
    assert mine == others
    processes = list(image.processes(process_pb2.GetProcsRequest(arguments=True)))
    assert processes == list(dump.image.processes(process_pb2.GetProcsRequest(arguments=True)))
    assert list(image.log()) == list(dump.image.log())
    assert list(image.pages(0)) == list(dump.image.pages(0))


@pytest.mark.parametrize("at", [8, 424 + 4, 424 + 8, 424 + 12])
@pytest.mark.parametrize("value", [0, 1 << 31, 0xFFFFFFFF])
def test_headers_that_lie(from_bytes: Bytes, at: int, value: int) -> None:
    data = bytearray(fixture(NAME).path.read_bytes())
    data[at : at + 4] = struct.pack(">I", value)
    with pytest.raises(KvmError) as caught:
        from_bytes(bytes(data))
    assert caught.value.reason in (Reason.CORRUPT_IMAGE, Reason.TRUNCATED_IMAGE)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.999])
def test_a_cut_dump_is_refused(from_bytes: Bytes, share: float) -> None:
    """libkdumpfile reads pages of such dumps when it opens them, and would die of those that are missing."""
    data = fixture(NAME).path.read_bytes()
    with pytest.raises(KvmError) as caught:
        from_bytes(data[: int(len(data) * share)])
    assert caught.value.reason is Reason.TRUNCATED_IMAGE


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_elf_core_gives_what_it_holds(
    from_bytes: Bytes, dump: Opened, memory: list[tuple[int, bytes]], share: float
) -> None:
    data = big_endian_core(memory, dump.image.kernel.info.text)
    image = from_bytes(data[: int(len(data) * share)])
    held, reasons = 0, set()
    for start, whole in memory:
        for at in range(start, start + len(whole), PAGE):
            try:
                assert image.read(at, PAGE, PHYSICAL) == dump.image.read(at, PAGE, PHYSICAL)
                held += 1
            except KvmError as e:
                reasons.add(e.reason)
    assert held > 100
    assert reasons == {Reason.SHORT_FILE}


@pytest.mark.parametrize("seed", range(20))
def test_damaged_memory_ends_with_an_answer_or_a_reason(
    from_bytes: Bytes, dump: Opened, memory: list[tuple[int, bytes]], seed: int
) -> None:
    rng = random.Random(seed)
    runs = [(at, bytearray(data)) for at, data in memory]
    for _ in range(2000):
        data = rng.choice(runs)[1]
        place = rng.randrange(len(data) - 8) & -8
        data[place : place + 8] = rng.getrandbits(64).to_bytes(8, "big")
    with suppress(KvmError):
        image = from_bytes(big_endian_core([(at, bytes(data)) for at, data in runs], dump.image.kernel.info.text))
        asked: list[Callable[[LinuxImage], Any]] = [
            LinuxImage.info,
            lambda image: list(image.processes(process_pb2.GetProcsRequest(arguments=True))),
            lambda image: list(image.log()),
            lambda image: list(image.pages(0)),
            LinuxImage.cpus,
            LinuxImage.swap_areas,
        ]
        for ask in asked:
            with suppress(KvmError):
                ask(image)
