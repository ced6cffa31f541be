"""Dumps of Linux 6.1, 6.12 and 7.2 whose processes were swapped out everywhere: zram, zswap, a partition, a file.

Made in a guest by tests/guest/swap_zoo.py; of the dumps and images those pages are left that these tests look at.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from guest.swap_zoo import PAGE, expected
from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.swap.entry import Kind
from kvmd.images.linux.userpages import UserPages
from kvmd.v1 import memory_pb2, process_pb2
from tests.unit.images.conftest import Opener

USER = memory_pb2.ADDRESS_SPACE_USER
KERNELS = ["swap-6.1", "swap-6.12", "swap-7.2"]
IMAGES = ("swap.img", "swapfile.img", "swapz.img")
ZSWAP = {
    "swap-6.1": {
        *("lzo-zbud", "lz4-zsmalloc", "deflate-zbud", "zstd-zsmalloc"),
        *("zstd-z3fold", "lzo-rle-z3fold", "lzo-rle-zsmalloc"),
    },
    "swap-6.12": {"lzo-zbud", "lz4-zsmalloc", "deflate-zbud", "zstd-zsmalloc", "lzo-rle-zsmalloc"},
    "swap-7.2": {f"{name}-zsmalloc" for name in ("lz4", "zstd", "lzo-rle")},
}
ZRAM = {
    "swap-6.1": {"lzo-rle", "lzo", "lz4", "lz4hc", "zstd"},
    "swap-6.12": {"lz4", "lz4hc", "zstd", "deflate"},
    "swap-7.2": {"lz4", "lz4hc", "zstd", "deflate"},
}


def held(kernel: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = fixture(f"{kernel}/vmcore.kdump").truth["held"]
    return found


@pytest.fixture(scope="module", params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(kernel: str, open_with: Opener) -> Any:
    """With every image; of /swapz, behind zswap, nothing in the dump shows that it is the right one."""
    return open_with(f"{kernel}/vmcore.kdump", [f"{kernel}/{name}" for name in IMAGES], any_swap=True)


@pytest.fixture(scope="module")
def careful(kernel: str, open_with: Opener) -> Any:
    return open_with(f"{kernel}/vmcore.kdump", [f"{kernel}/{name}" for name in IMAGES])


@pytest.fixture(scope="module")
def alone(kernel: str, open_with: Opener) -> Any:
    return open_with(f"{kernel}/vmcore.kdump")


def regions(kernel: str) -> list[tuple[dict[str, Any], dict[str, Any], bytes]]:
    return [(p, r, expected(p["name"], r["name"], r["pages"])) for p in held(kernel) for r in p["regions"]]


def test_every_kind_of_swap_is_there(kernel: str) -> None:
    names = {p["name"] for p in held(kernel)}
    assert {n.removeprefix("zswap-") for n in names if n.startswith("zswap")} == ZSWAP[kernel]
    assert {n.removeprefix("zram-") for n in names if n.startswith("zram")} == ZRAM[kernel]
    assert {"partition", "file"} <= names


def test_every_byte(kernel: str, whole: Any) -> None:
    for process, region, wanted in regions(kernel):
        got = whole.read(region["address"], len(wanted), USER, process["pid"])
        assert got == wanted, (process["name"], region["name"])


def test_every_page_by_itself_and_across_pages(kernel: str, whole: Any) -> None:
    for process, region, wanted in regions(kernel):
        for page in range(0, region["pages"], 5):
            at = page * PAGE
            for start, length in ((at, PAGE), (at + 9, 1), (max(at - 3, 0), 6)):
                got = whole.read(region["address"] + start, length, USER, process["pid"])
                assert got == wanted[start : start + length], (process["name"], region["name"], start)


def test_arguments_and_environments(kernel: str, whole: Any) -> None:
    for process in held(kernel):
        for kind, what in (
            (process_pb2.STRINGS_KIND_ARGUMENTS, "argv"),
            (process_pb2.STRINGS_KIND_ENVIRONMENT, "environ"),
        ):
            strings = whole.strings(process["pid"], kind, 0)
            assert not strings.HasField("error")
            assert b"".join(value + b"\0" for value in strings.values) == process[what].encode("latin1")


def test_entries_are_what_pagemap_said(kernel: str, whole: Any) -> None:
    pages: UserPages = whole._pages
    tables, seen = whole.kernel.memory.tables, 0
    for process in held(kernel):
        root = whole._user._mm(whole._processes.memory(process["pid"]))["pgd"]
        top = whole.kernel.memory.translate(root).physical
        for region in process["regions"]:
            for number, where in enumerate(region["where"]):
                if isinstance(where, list):
                    word, level = tables.last(top, region["address"] + number * PAGE)
                    entry = whole.kernel.memory.physical(word + (region["address"] // PAGE + number) % 512 * 8, 8)
                    found = pages._decoder.decode(int.from_bytes(entry, "little"))
                    assert (level, found.kind, found.type, found.offset) == (1, Kind.SWAP, *where)
                    seen += 1
    assert seen > 350


def test_the_kernels_count_of_areas_agrees(whole: Any) -> None:
    """swap_info has MAX_SWAPFILES elements; the symbol table knows where the next variable begins."""
    size = whole.kernel.builtin("swap_info").size
    areas = whole._pages._decoder.areas
    assert 0 <= size - 8 * areas < 64


def test_pages_that_nobody_may_touch_are_resident_and_read(kernel: str, whole: Any) -> None:
    process = next(p for p in held(kernel) if p["name"] == "partition")
    hidden = next(r for r in process["regions"] if r["name"] == "none")
    assert "present" in hidden["where"]
    assert whole.read(hidden["address"], 4 * PAGE, USER, process["pid"]) == expected("partition", "none", 4)


def outcomes(kernel: str, image: Any) -> dict[str, Counter[str]]:
    """By process: how many pages were right, and the messages of the others; none may be wrong."""
    found: dict[str, Counter[str]] = {}
    for process, region, wanted in regions(kernel):
        counts = found.setdefault(process["name"], Counter())
        for number in range(region["pages"]):
            try:
                got = image.read(region["address"] + number * PAGE, PAGE, USER, process["pid"])
            except KvmError as e:
                assert e.reason in (Reason.NOT_PRESENT, Reason.SWAP_UNPROVEN)
                counts[e.message] += 1
            else:
                assert got == wanted[number * PAGE :][:PAGE]
                counts["right"] += 1
    return found


def test_without_images_what_is_in_memory_is_right_and_all_else_says_why(kernel: str, alone: Any) -> None:
    for name, counts in outcomes(kernel, alone).items():
        assert set(counts) <= {"right", "swapped out, no swap image given"}
        if name.startswith("zram"):
            assert set(counts) == {"right"}, name
        elif name.startswith("zswap"):
            assert counts["right"] >= 50, name  # incompressible pages went on to the area, before 6.18
        else:
            assert counts["swapped out, no swap image given"] >= 30


def test_with_other_images_the_area_is_named(kernel: str, open_with: Opener) -> None:
    image = open_with(f"{kernel}/vmcore.kdump", [f"{kernel}/swap.img"])
    areas = {area.number: area for area in image.swap_areas()}
    for name, counts in outcomes(kernel, image).items():
        said = set(counts) - {"right"}
        if name == "file":
            assert said == {f"swap area 1 (/swapfile, UUID {areas[1].uuid}) not given"}
            assert len(areas[1].uuid) == 36
        elif name == "partition":
            assert not said


def test_the_list_of_areas(kernel: str, whole: Any, alone: Any) -> None:
    text = fixture(f"{kernel}/vmcore.kdump").truth["areas"]
    told = {line.split(" ")[0]: line.split(" ")[1:] for line in text.splitlines()}
    given = {"/dev/vdb": "swap.img", "/swapfile": "swapfile.img", "/swapz": "swapz.img"}
    for image, names in ((whole, given), (alone, {})):
        areas = image.swap_areas()
        assert {area.path.decode() for area in areas} == set(told)
        for area in areas:
            path = area.path.decode()
            assert [area.uuid, area.label] == told[path]
            assert area.satisfied_by == ("memory" if "zram" in path else names.get(path, ""))


def test_an_image_that_nothing_proves_is_not_read(kernel: str, careful: Any, alone: Any) -> None:
    """What is in memory is read as before, and what the other images have; each page of this one is an error."""
    areas = {area.path.decode(): area for area in careful.swap_areas()}
    assert [areas[path].satisfied_by for path in ("/dev/vdb", "/swapfile", "/swapz")] == [
        "swap.img",
        "swapfile.img",
        "",
    ]
    said = Counter[str]()
    for counts, without in zip(outcomes(kernel, careful).values(), outcomes(kernel, alone).values(), strict=True):
        said += counts
        assert counts["right"] >= without["right"]
    said.pop("right")
    assert all(words.startswith("swapz.img: nothing in the dump shows that swap area") for words in said)
    assert bool(said) == (kernel != "swap-7.2")  # whose incompressible pages stay in zswap


def test_an_image_made_anew_is_stale(kernel: str, open_with: Opener, tmp_path: Any) -> None:
    data = bytearray(fixture(f"{kernel}/swapfile.img").path.read_bytes())
    data[1036:1052] = bytes(range(16))
    path = tmp_path / "stale.img"
    path.write_bytes(data)
    with pytest.raises(KvmError, match=r"^stale\.img: .*its UUID is 00010203-0405-0607-0809-0a0b0c0d0e0f") as caught:
        open_with(f"{kernel}/vmcore.kdump", [path])
    assert caught.value.reason is Reason.SWAP_FOREIGN
