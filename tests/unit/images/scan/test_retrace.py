"""Kernels with neither VMCOREINFO nor data symbols, and arm64's, by their page tables. The oracle is their note."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from images import DATA, fixture
from kernel_truth import unnoted, wiped
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import process_pb2
from mutate import Mutable
from unit.images.conftest import Bytes, opened

NAMES = ("arm64-6.1/vmcore.kdump", "x86-no-data-symbols/vmcore.kdump")
BY_NOTE = {"node_states", "vm_node_stat", "vm_zone_stat"}
"""What follows from symbols that a note tells of, of one of these kernels at least."""
_ALL = (1 << 64) - 1


class Case(NamedTuple):
    name: str
    whole: LinuxImage
    image: LinuxImage

    @property
    def root(self) -> int:
        return self.whole.kernel.memory.root

    @property
    def distance(self) -> int:
        return self.whole.kernel.address("swapper_pg_dir") - self.root & _ALL

    @property
    def room(self) -> int:
        """A page of the kernel's data that nothing here needs: the printk buffer's text."""
        ring = self.whole.kernel.prog["prb"].text_data_ring
        return (int(ring.data.value_()) + 4095) & -4096


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    path = tmp_path_factory.mktemp("retrace") / "core"
    path.write_bytes(wiped(request.param))
    with opened(fixture(request.param).path) as whole, opened(path) as image:
        yield Case(request.param, whole, image)


@pytest.fixture
def memory(case: Case, tmp_path: Path) -> Iterator[Mutable]:
    """A copy of the dump without VMCOREINFO that a test changes."""
    path = tmp_path / "wiped"
    path.write_bytes(wiped(case.name))
    changed = Mutable(path, case.whole.kernel)
    yield changed
    changed.close()


def fails(from_bytes: Bytes, memory: Mutable) -> KvmError:
    started = time.monotonic()
    with pytest.raises(KvmError) as caught:
        from_bytes(bytes(memory.data))
    assert time.monotonic() - started < 20
    return caught.value


def test_the_lines_are_those_of_the_note(case: Case) -> None:
    made, note = case.image.kernel.info, case.whole.kernel.info
    assert set(made.lines) <= {*note.lines, "BUILD-ID"}
    known = {key: value for key, value in made.lines.items() if key != "LENGTH(mem_section)"}
    assert known == {key: note.lines[key] for key in known}
    assert 0 < (made.length("mem_section") or 0) <= (note.length("mem_section") or 0)


def test_what_it_tells_is_what_the_note_leads_to(case: Case) -> None:
    def facts(image: LinuxImage) -> object:
        info = image.info()
        names = ("release", "version", "banner", "kaslr_offset", "phys_base", "paging_levels", "memory_bytes", "taint")
        processes = image.processes(process_pb2.GetProcsRequest(threads=True))
        tasks = [(p.pid, p.comm, p.ppid, p.task_address) for p in processes]
        return {name: getattr(info, name) for name in names}, tasks, info.types

    assert case.image.info().symbols == "scan"
    assert facts(case.image) == facts(case.whole)


def test_objects_lie_where_dwarf_has_them(case: Case) -> None:
    dwarf = json.loads((DATA / case.name.split("/")[0] / "dwarf.json").read_text())
    names = dwarf["objects"].keys() - BY_NOTE
    found = {s.name: s.value for s in case.image.symbols(names) if s.found}
    assert found == {name: dwarf["objects"][name][0] for name in names}
    assert len(names) > 55


def test_types_that_are_of_other_functions_do_not_count(case: Case, from_bytes: Bytes) -> None:
    data = wiped(case.name)
    changed = data.replace(b"_read", b"_raed").replace(b"_init", b"_inti").replace(b"_show", b"_sohw")
    image = from_bytes(changed.replace(b"_write", b"_wriet").replace(b"_set", b"_ste").replace(b"_get", b"_gte"))
    assert image.info().types == ""


def test_a_second_table_is_an_error_not_a_guess(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    memory.kernel(case.room, case.whole.kernel.memory.physical(case.root, 4096))
    e = fails(from_bytes, memory)
    assert e.reason is Reason.AMBIGUOUS
    assert "several kernels" in e.message


def entry(case: Case) -> int:
    """Where the top-level table's entry for the kernel's image is."""
    paging = case.whole.kernel.memory.walkable().paging
    return case.root + 8 * paging.index(case.whole.kernel.address("_stext"), paging.levels)


def drop_image(case: Case, memory: Mutable) -> None:
    memory.physical(entry(case), bytes(8))


def drop_linear(case: Case, memory: Mutable) -> None:
    kept = entry(case)
    for place in range(case.root, case.root + 4096, 8):
        if place != kept:
            memory.physical(place, bytes(8))


def loop(case: Case, memory: Mutable) -> None:
    for place in range(case.root, case.root + 4096, 8):
        memory.physical(place, (case.root | 0x63).to_bytes(8, "little"))


def other_banner(case: Case, memory: Mutable) -> None:
    version = case.whole.info().version.encode()
    memory.data[:] = bytes(memory.data).replace(b") " + version + b"\n", b") " + version[::-1] + b"\n")


def other_number(case: Case, memory: Mutable) -> None:
    memory.data[:] = bytes(memory.data).replace(b"\xfe\xff\xff\xef", b"\xfd\xff\xff\xef")


def no_pointer(case: Case, memory: Mutable) -> None:
    address = case.whole.kernel.address("init_uts_ns").to_bytes(8, "little")
    memory.data[:] = bytes(memory.data).replace(address, bytes(8))


CHANGES: list[Callable[[Case, Mutable], None]] = [
    *(drop_image, drop_linear, loop),
    *(other_banner, other_number, no_pointer),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_does_not_agree_is_no_kernel(
    case: Case, memory: Mutable, from_bytes: Bytes, change: Callable[[Case, Mutable], None]
) -> None:
    before = bytes(memory.data)
    change(case, memory)
    assert bytes(memory.data) != before
    # libkdumpfile looks for tables of its own accord, and stumbles over those that lead to themselves.
    reasons = {Reason.NO_VMCOREINFO, Reason.CORRUPT_IMAGE} if change is loop else {Reason.NO_VMCOREINFO}
    assert fails(from_bytes, memory).reason in reasons


def test_a_second_name_that_is_pointed_to(case: Case, memory: Mutable, from_bytes: Bytes) -> None:
    at = case.room
    memory.kernel(at, case.whole.kernel.memory.kernel(case.whole.kernel.address("init_uts_ns"), 512))
    memory.word(at + 1024, at)
    assert fails(from_bytes, memory).reason is Reason.AMBIGUOUS


def test_the_text_in_memory_comes_first(case: Case, from_bytes: Bytes) -> None:
    """The kernel's own is whole, and tells sizes, too."""
    image = from_bytes(unnoted(case.name))
    assert image.kernel.info.text.strip() == case.whole.kernel.info.text.strip()
