"""Kernels whose VMCOREINFO does not tell where kallsyms are (5.10, 5.15): what is found without that is all the same.

Their truth is the guest's, and drgn's with the DWARF vmlinux of the same build (tests/guest/dwarf_truth.py).
"""

from __future__ import annotations

import json
import lzma
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import drgn
import pytest
from drgn.helpers.linux.cpumask import for_each_online_cpu
from drgn.helpers.linux.fs import for_each_mount, mount_dst
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import for_each_slab_cache

from images import DATA, fixture
from kvmd.v1 import process_pb2
from kvmd.v1 import symbol_pb2 as pb

from . import test_processes, test_strings, test_user
from .conftest import Opened, opened

OLDER = ["linux-5.10", "linux-5.15"]


@pytest.fixture(scope="module", params=OLDER)
def older(request: pytest.FixtureRequest) -> Iterator[Opened]:
    path, truth = fixture(f"{request.param}/vmcore.kdump")
    with opened(path) as image:
        yield Opened(image, truth, f"{request.param}/vmcore.kdump")


@pytest.fixture(scope="module")
def dwarf(older: Opened) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DATA / older.name.split("/")[0] / "dwarf.json").read_text())
    return found


def test_every_symbol_is_the_guests(older: Opened) -> None:
    with lzma.open(DATA / older.name.split("/")[0] / "kallsyms.xz", "rt") as file:
        rows = [line.split() for line in file]
    times = Counter(name for _, _, name in rows)
    rows = [row for row in rows if times[row[2]] == 1]
    assert len(rows) > 26_000
    found = older.image.symbols([name for _, _, name in rows])
    assert [s.value for s in found] == [int(address, 16) for address, _, _ in rows]
    assert {s.source for s in found} == {pb.SYMBOL_SOURCE_SCAN}
    assert (older.image.kernel_name(), older.image.info().symbols) == ("scan", "scan")


def test_facts(older: Opened) -> None:
    info, truth = older.image.info(), older.truth
    for name in ("release", "version", "machine", "nodename", "banner", "page_size", "cpus_online"):
        assert getattr(info, name) == truth[name]
    assert (info.types, info.taint, info.kaslr_offset) == ("btf", "", truth["kallsyms"]["_text"] - 0xFFFFFFFF81000000)
    assert 0 <= info.uptime_ns - truth["boottime_ns"] < 30 * 10**9


GENERIC: list[Callable[[Opened], None]] = [
    test_processes.test_every_field_is_what_proc_said,
    test_processes.test_comm_is_the_kernels_own,
    test_processes.test_threads_are_listed,
    test_strings.test_drgn_reads_the_same,
    test_user.test_pages_in_the_swap_cache_are_read,
]


@pytest.mark.parametrize("check", GENERIC, ids=lambda check: check.__name__)
def test_what_holds_of_every_dump(older: Opened, check: Callable[[Opened], None]) -> None:
    check(older)


def test_arguments(older: Opened) -> None:
    alive = {p.pid for p in older.image.processes(process_pb2.GetProcsRequest())}
    recorded = [p for p in older.truth["processes"] if p["pid"] in alive and not p["kthread"] and p["state"] != "Z"]
    assert len(recorded) == 19
    for p in recorded:
        for kind, name in ((process_pb2.STRINGS_KIND_ARGUMENTS, "argv"), (process_pb2.STRINGS_KIND_ENVIRONMENT, "env")):
            strings = older.image.strings(p["pid"], kind, 0)
            assert list(strings.values) == test_strings.raw(p[name])


def test_the_log_is_there(older: Opened) -> None:
    records = list(older.image.log())
    assert any(b"Adding 4092k swap on /mnt/swapfile" in record.text for record in records)
    assert [r.sequence for r in records] == list(range(records[0].sequence, records[0].sequence + len(records)))


def test_swap_areas(older: Opened) -> None:
    rows = [line.split() for line in older.truth["swaps"].splitlines()[1:]]
    areas = older.image.swap_areas()
    assert [(a.path, a.size_bytes >> 10, a.used_bytes >> 10, a.priority) for a in areas] == [
        (name.encode(), int(size), int(used), int(priority)) for name, _, size, used, priority in rows
    ]


def test_members_lie_where_dwarf_has_them(older: Opened, dwarf: dict[str, Any]) -> None:
    older.image.kernel.need_types()
    prog = older.image.kernel.prog
    for name, place in dwarf["members"].items():
        struct, _, member = name.partition(".")
        found = prog.type(f"struct {struct}").member(member)
        assert [found.bit_offset, found.bit_field_size or 8 * drgn.sizeof(found.type)] == place
    assert len(dwarf["members"]) >= 90
    assert {name: drgn.sizeof(prog.type(f"struct {name}")) for name in dwarf["sizes"]} == dwarf["sizes"]
    assert {name: prog[name].value_() for name in dwarf["constants"]} == dwarf["constants"]


def test_helpers_of_drgn(older: Opened, dwarf: dict[str, Any]) -> None:
    prog = older.image.kernel.prog
    tasks = sorted([task.pid.value_(), task.comm.string_().decode(), task.value_()] for task in for_each_task(prog))
    assert tasks == dwarf["tasks"]
    assert sorted(cache.name.string_().decode() for cache in for_each_slab_cache(prog)) == dwarf["caches"]
    assert sorted(mount_dst(mount).decode() for mount in for_each_mount(prog)) == dwarf["mounts"]
    assert list(for_each_online_cpu(prog)) == dwarf["cpus"]


@pytest.mark.parametrize("name", OLDER)
def test_it_takes_no_time(name: str) -> None:
    with opened(fixture(f"{name}/vmcore.kdump").path) as image:
        began = time.monotonic()
        assert image.symbols(["init_task"])[0].found
        assert time.monotonic() - began < 10
