"""Swap areas against the guest's /proc/swaps, and against drgn's helpers."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest
from drgn.helpers.linux.swap import for_each_swap_info, swap_file_path, swap_is_file, swap_usage_in_pages

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.paths import Paths, init_root
from kvmd.images.linux.swapinfo import SwapAreas
from overlay import Overlay

HEAD = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority"


def shown(area: Any) -> str:
    """A line of /proc/swaps."""
    path = re.sub(rb"[ \t\n\\]", lambda m: b"\\%03o" % m.group()[0], area.path).decode("utf-8", "surrogateescape")
    size, used = area.size_bytes >> 10, area.used_bytes >> 10
    tabs = ["" if number >= 10_000_000 else "\t" for number in (size, used)]
    kind = area.kind if area.kind == "partition" else "file\t"
    return f"{path}{' ' * max(40 - len(path), 1)}{kind}\t{size}\t{tabs[0]}{used}\t{tabs[1]}{area.priority}"


def read(kernel: Any, image: Any) -> list[Any]:
    return SwapAreas(kernel).read(Paths(kernel, init_root(kernel, image._processes.tasks)))


def test_the_list_is_what_proc_swaps_showed(dump: Any) -> None:
    areas = dump.image.swap_areas()
    assert [a.number for a in areas] == [0, 1]
    assert "\n".join([HEAD, *map(shown, areas)]) == dump.truth["swaps"]


def test_drgn_reads_the_same(dump: Any) -> None:
    found = [(a.path, a.kind == "file", a.used_bytes) for a in dump.image.swap_areas()]
    infos = for_each_swap_info(dump.image.kernel.prog)
    assert found == [(swap_file_path(s), swap_is_file(s), swap_usage_in_pages(s) * 4096) for s in infos]


def info(image: Any, number: int) -> Any:
    return image.kernel.prog["swap_info"][number]


@pytest.mark.parametrize(("flags", "listed"), [(0, [1]), (1, [0, 1]), (2, [1]), (3, [0, 1])])
def test_areas_in_use_are_listed_also_while_they_are_turned_off(qemu: Any, flags: int, listed: list[int]) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(info(qemu.image, 0).flags.address_, flags)
    assert [a.number for a in read(kernel, qemu.image)] == listed


@pytest.mark.parametrize("member", ["swap_map", "swap_file"])
def test_an_area_that_is_being_made_is_not_listed(qemu: Any, member: str) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(info(qemu.image, 1).member_(member).address_, 0)
    assert [a.number for a in read(kernel, qemu.image)] == [0]


def test_free_slots_and_negative_priorities(qemu: Any) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(kernel.address("swap_info"), 0)
    kernel.put(info(qemu.image, 1).prio.address_, 0xFFFE, 2)
    assert [(a.number, a.priority) for a in read(kernel, qemu.image)] == [(1, -2)]


def test_a_bit_of_newer_counters_counts_nothing(qemu: Any) -> None:
    areas = SwapAreas(qemu.image.kernel)
    assert areas._mask == -1  # an unsigned int in this kernel
    areas._mask = ~(1 << 30)  # as for the atomic_long_t of 6.13
    kernel = Overlay(qemu.image.kernel)
    kernel.put(info(qemu.image, 0).inuse_pages.address_, 5 | 1 << 30, 4)
    areas._info._read = kernel.memory.kernel
    assert areas.read(Paths(qemu.image.kernel, (0, 0)))[0].used_bytes == 5 * 4096


class Swapless(Overlay):
    def builtin(self, name: str) -> Any:
        return None if name in ("swap_info", "nr_swapfiles") else self._kernel.builtin(name)


def test_a_kernel_without_swap_has_no_areas(qemu: Any) -> None:
    assert read(Swapless(qemu.image.kernel), qemu.image) == []


@pytest.mark.parametrize(
    ("symbol", "value", "reason"),
    [
        ("nr_swapfiles", 33, Reason.CORRUPT_DATA),
        ("nr_swapfiles", 2**32 - 1, Reason.CORRUPT_DATA),
        ("swap_info", 0x1234, Reason.NOT_MAPPED),
        ("swap_info", 0xDEAD_0000_0000_0000, Reason.NOT_MAPPED),
        ("swap_info", 2**64 - 8, Reason.NOT_MAPPED),
    ],
)
def test_garbage_is_a_typed_error(qemu: Any, symbol: str, value: int, reason: Reason) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(kernel.address(symbol), value, 4 if symbol == "nr_swapfiles" else 8)
    with pytest.raises(KvmError) as caught:
        read(kernel, qemu.image)
    assert caught.value.reason is reason


def test_a_file_that_points_nowhere(qemu: Any) -> None:
    kernel = Overlay(qemu.image.kernel)
    kernel.put(info(qemu.image, 1).swap_file.address_, 0xFFFF_8000_0000_0000)
    with pytest.raises(KvmError) as caught:
        read(kernel, qemu.image)
    assert caught.value.reason is Reason.NOT_MAPPED


def test_any_garbage_ends_soon(qemu: Any) -> None:
    """The structures' words replaced by other pointers, or noise: an answer or a typed error, in bounded time."""
    rng, kernel = random.Random(5), qemu.image.kernel
    file = info(qemu.image, 1).swap_file
    things = [info(qemu.image, 0), info(qemu.image, 1), file, file.f_path.dentry, file.f_inode]
    places = [t.value_() for t in things]
    began = time.perf_counter()
    for _ in range(300):
        bent = Overlay(kernel)
        for _ in range(rng.randint(1, 6)):
            value = rng.choice([0, 1, 2**64 - 1, rng.getrandbits(64), *places])
            bent.put(rng.choice(places) + 8 * rng.randrange(24), value)
        try:
            read(bent, qemu.image)
        except KvmError as e:
            assert e.reason in (Reason.NOT_MAPPED, Reason.CORRUPT_DATA, Reason.EXCLUDED, Reason.BAD_ARGUMENT)
    assert time.perf_counter() - began < 30
