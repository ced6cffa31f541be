"""Memory of processes against the patterns that the guest's processes wrote into theirs."""

from __future__ import annotations

from typing import Any

import pytest
from drgn.helpers.linux.mm import access_process_vm
from drgn.helpers.linux.pid import find_task

from kvmd.errors import KvmError, Reason
from kvmd.images.base import CHUNK
from kvmd.v1 import memory_pb2 as pb

PAGE = 4096
USER = pb.ADDRESS_SPACE_USER


def pattern(page: dict[str, Any]) -> bytes:
    """What the owner of a page wrote into it."""
    line = f"BED {page['name']} {page['what']} {page['index']:04}\n".encode()
    return (line * (PAGE // len(line) + 1))[:PAGE]


def filled(opened: Any, what: tuple[str, ...] = ("heap", "anon", "thp")) -> list[dict[str, Any]]:
    return [p for p in opened.truth["pages"] if p["what"] in what]


def fails(image: Any, pid: int, address: int, length: int) -> KvmError:
    with pytest.raises(KvmError) as caught:
        image.read(address, length, USER, pid)
    return caught.value


def test_resident_pages_hold_their_pattern(dump: Any) -> None:
    pages = [p for p in filled(dump) if p["present"]]
    assert len(pages) == 21
    for p in pages:
        assert dump.image.read(p["vaddr"], PAGE, USER, p["pid"]) == pattern(p)
        assert dump.image.read(p["paddr"], PAGE, pb.ADDRESS_SPACE_PHYSICAL) == pattern(p)


def test_swapped_pages_say_so(dump: Any) -> None:
    pages = [p for p in dump.truth["pages"] if p["swapped"] and p["name"] != "cached"]
    assert len(pages) == 26
    for p in pages:
        e = fails(dump.image, p["pid"], p["vaddr"] + 5, 7)
        assert (e.reason, e.address) == (Reason.NOT_PRESENT, p["vaddr"] + 5)
        assert (e.metadata["readable"], e.metadata["pid"]) == ("0", str(p["pid"]))
        assert e.message == "swapped out, no swap image given"


def test_pages_in_the_swap_cache_are_read(dump: Any) -> None:
    pages = [p for p in filled(dump) if p["swapped"] and p["name"] == "cached"]
    assert len(pages) == 12
    for p in pages:
        assert dump.image.read(p["vaddr"], PAGE, USER, p["pid"]) == pattern(p)


def test_ranges_of_many_pages(dump: Any) -> None:
    heap = [p for p in filled(dump, ("heap",)) if p["name"] == "resident"]
    start = heap[0]["vaddr"]
    assert [p["vaddr"] for p in heap] == list(range(start, start + 8 * PAGE, PAGE))
    whole = b"".join(map(pattern, heap))
    assert dump.image.read(start, 8 * PAGE, USER, heap[0]["pid"]) == whole
    assert dump.image.read(start + 100, 7 * PAGE, USER, heap[0]["pid"]) == whole[100 : 100 + 7 * PAGE]
    assert dump.image.read(start, 0, USER, heap[0]["pid"]) == b""


def test_a_huge_page_is_read_whole(dump: Any) -> None:
    (first, *_) = filled(dump, ("thp",))
    data = dump.image.read(first["vaddr"], CHUNK, USER, first["pid"])
    pages = [pattern(first | {"index": i}) for i in range(CHUNK // PAGE)]
    assert data == b"".join(pages)


def test_the_part_before_a_fault_is_told(dump: Any) -> None:
    last = [p for p in filled(dump, ("heap",)) if p["name"] == "resident"][-1]
    e = fails(dump.image, last["pid"], last["vaddr"] + 96, 2 * PAGE)
    assert (e.reason, e.address) == (Reason.NOT_MAPPED, last["vaddr"] + PAGE)
    assert e.metadata["readable"] == str(PAGE - 96)


def test_arguments_are_there(dump: Any) -> None:
    for p in (q for q in dump.truth["processes"] if q["zoo"] in ("plain", "user", "resident", "longargs", "thp")):
        data = dump.image.read(p["arg_start"], p["arg_end"] - p["arg_start"], USER, p["pid"])
        assert data == b"".join(s.encode("utf-8", "surrogateescape") + b"\0" for s in p["argv"])


def test_drgn_reads_the_same(qemu: Any) -> None:
    for p in (q for q in filled(qemu) if q["present"]):
        theirs = access_process_vm(find_task(qemu.image.kernel.prog, p["pid"]), p["vaddr"], 64)
        assert qemu.image.read(p["vaddr"], 64, USER, p["pid"]) == theirs


def test_a_thread_reads_its_processs_memory(qemu: Any) -> None:
    p = next(q for q in qemu.truth["processes"] if q["zoo"] == "threads")
    thread = max(t["tid"] for t in p["threads"])
    assert thread != p["pid"]
    assert qemu.image.read(p["arg_start"], 11, USER, thread) == b"bed-threads"


@pytest.mark.parametrize(("pid", "reason"), [(2, "NO_USER_MEMORY"), (0, "NO_SUCH_PROCESS"), (-3, "NO_SUCH_PROCESS")])
def test_no_such_memory(dump: Any, pid: int, reason: str) -> None:
    assert fails(dump.image, pid, 0x40_0000, 8).reason.value == reason


def test_a_zombie_has_none(dump: Any) -> None:
    zombie = next(p for p in dump.truth["processes"] if p["state"] == "Z")
    assert fails(dump.image, zombie["pid"], 0x40_0000, 8).reason is Reason.NO_USER_MEMORY


def test_the_kernels_half_is_no_memory_of_a_process(dump: Any) -> None:
    banner = dump.truth["kallsyms"]["linux_banner"]
    bits = 11 + 9 * dump.image.kernel.memory.tables.paging.levels
    for address in (banner, 1 << bits, (1 << 64) - 8):
        e = fails(dump.image, 1, address, 8)
        assert (e.reason, e.address, e.metadata["readable"]) == (Reason.NOT_MAPPED, address, "0")
    e = fails(dump.image, 1, (1 << bits) - 1, 2)
    assert (e.reason, e.address) == (Reason.NOT_MAPPED, (1 << bits) - 1)


@pytest.mark.parametrize(("address", "length"), [(-1, 8), (1 << 64, 8), (0, -1), (0, CHUNK + 1)])
def test_senseless_reads_are_refused(qemu: Any, address: int, length: int) -> None:
    assert fails(qemu.image, 1, address, length).reason is Reason.BAD_ARGUMENT


def test_nothing_is_mapped_at_zero(dump: Any) -> None:
    assert fails(dump.image, 1, 0, 1).reason is Reason.NOT_MAPPED


def test_a_dump_is_never_written(dump: Any) -> None:
    with pytest.raises(KvmError) as caught:
        dump.image.write(dump.truth["kallsyms"]["jiffies"], b"\0" * 8)
    assert caught.value.reason is Reason.WRITE_DEAD
    assert caught.value.text == "kvm_write not implemented for dead kernels"
    assert caught.value.metadata["written"] == "0"
