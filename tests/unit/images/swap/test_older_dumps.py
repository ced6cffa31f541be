"""The dumps with a partition and a fragmented swap file: every page that was swapped out, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from drgn.helpers.linux.pid import find_task

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.v1 import memory_pb2, process_pb2
from tests.unit.images.conftest import Opener

PAGE = 4096
USER = memory_pb2.ADDRESS_SPACE_USER
ARGUMENTS, ENVIRONMENT = process_pb2.STRINGS_KIND_ARGUMENTS, process_pb2.STRINGS_KIND_ENVIRONMENT
DUMPS = [
    *("qemu/vmcore.kdump", "qemu/vmcore.elfd", "la57/vmcore.kdump", "hole/vmcore.kdump"),
    *("kdump/vmcore.kdump", "debian-6.1-panic/vmcore.kdump"),
]
WITHHELD = "swapped out, no swap image given"


def images(dump: str, *names: str) -> list[str]:
    return [f"{dump.partition('/')[0]}/{name}" for name in names]


def pattern(page: dict[str, Any]) -> bytes:
    line = f"BED {page['name']} {page['what']} {page['index']:04}\n".encode()
    return (line * (PAGE // len(line) + 1))[:PAGE]


def swapped(dump: str) -> list[dict[str, Any]]:
    pages = [page for page in fixture(dump).truth["pages"] if page["swapped"]]
    assert len(pages) == 39
    return pages


def outcome(image: Any, page: dict[str, Any]) -> bytes | str:
    try:
        data: bytes = image.read(page["vaddr"], PAGE, USER, page["pid"])
    except KvmError as e:
        assert e.reason is Reason.NOT_PRESENT
        assert (e.address, e.metadata["readable"]) == (page["vaddr"], "0")
        return e.message
    return data


@pytest.mark.parametrize("dump", DUMPS)
@pytest.mark.parametrize("file", ["swapfile.img", "swapfs.img"])
def test_every_page_with_the_images(open_with: Opener, dump: str, file: str) -> None:
    image = open_with(dump, images(dump, "swap.img", file))
    for page in swapped(dump):
        got = outcome(image, page)
        assert len(got) == PAGE, got
        if page["what"] != "argenv":
            assert got == pattern(page)
    for process in fixture(dump).truth["processes"]:
        if process.get("zoo") in ("swapped", "filed", "cached"):
            for kind, what in ((ARGUMENTS, "argv"), (ENVIRONMENT, "env")):
                strings = image.strings(process["pid"], kind, 0)
                assert [v.decode("utf-8", "surrogateescape") for v in strings.values] == process[what]
                assert not strings.HasField("error")


@pytest.mark.parametrize("dump", DUMPS)
def test_every_page_without(open_with: Opener, dump: str) -> None:
    """What is cached in memory is there; all else says why not, and nothing is made up."""
    image = open_with(dump)
    for page in swapped(dump):
        got = outcome(image, page)
        if page["name"] != "cached":
            assert got == WITHHELD
        elif page["what"] != "argenv":
            assert got == pattern(page)


@pytest.mark.parametrize(("given", "missing"), [("swap.img", "filed"), ("swapfile.img", "swapped")])
def test_one_image_of_two(open_with: Opener, given: str, missing: str) -> None:
    dump = "qemu/vmcore.kdump"
    image = open_with(dump, images(dump, given))
    path = {"filed": "swap area 1 (/mnt/swapfile", "swapped": "swap area 0 (/dev/vda"}[missing]
    for page in swapped(dump):
        got = outcome(image, page)
        if page["name"] == missing:
            assert got == f"{path}, UUID unknown) not given"
        elif page["what"] != "argenv":
            assert got == pattern(page)
    areas = image.swap_areas()
    assert [area.satisfied_by for area in areas] == [
        given if given == "swap.img" else "",
        given if missing == "swapped" else "",
    ]
    assert sum(len(area.uuid) for area in areas) == 36


def test_a_range_over_pages_of_both_kinds(open_with: Opener) -> None:
    dump = "qemu/vmcore.kdump"
    image = open_with(dump, images(dump, "swap.img", "swapfile.img"))
    heap = [page for page in swapped(dump) if page["what"] == "heap" and page["name"] == "filed"]
    whole = b"".join(map(pattern, heap))
    start = heap[0]["vaddr"]
    assert [page["vaddr"] for page in heap] == list(range(start, start + len(whole), PAGE))
    for at, length in ((0, len(whole)), (1, 1), (PAGE - 1, 2), (77, 5 * PAGE), (3 * PAGE, PAGE + 1), (0, 0)):
        assert image.read(start + at, length, USER, heap[0]["pid"]) == whole[at : at + length]


def test_what_is_readable_before_a_page_that_is_not(open_with: Opener) -> None:
    dump = "qemu/vmcore.kdump"
    image = open_with(dump)
    page = next(page for page in swapped(dump) if page["name"] == "swapped" and page["what"] == "argenv")
    with pytest.raises(KvmError) as caught:
        image.read(page["vaddr"] - PAGE - 8, 3 * PAGE, USER, page["pid"])
    assert caught.value.address is not None
    assert caught.value.address == page["vaddr"] - PAGE - 8 + int(caught.value.metadata["readable"])


def changed(name: str, tmp_path: Path, at: int, data: bytes, size: int | None = None) -> Path:
    """A copy of an image with other bytes."""
    whole = bytearray(fixture(name).path.read_bytes())
    whole[at : at + len(data)] = data
    path = tmp_path / Path(name).name
    path.write_bytes(bytes(whole[:size] if size is not None else whole))
    return path


REFUSED = {
    "last page": ("swap.img", 1028, b"\xfe\x07\0\0", Reason.SWAP_FOREIGN, "its last page is 2046, the kernel's 2047"),
    "bad pages": ("swap.img", 1032, b"\x01\0\0\0", Reason.SWAP_FOREIGN, "it has 1 bad pages"),
    "no swap": ("swap.img", 4086, b"SWAPSPACE1", Reason.UNSUPPORTED_FORMAT, "no SWAPSPACE2 signature"),
    "old": ("swap.img", 4086, b"SWAP-SPACE", Reason.UNSUPPORTED_FORMAT, "version 0"),
    "asleep": ("swap.img", 4086, b"S1SUSPEND\0", Reason.UNSUPPORTED_FORMAT, "suspended"),
    "version": ("swap.img", 1024, b"\2", Reason.CORRUPT_IMAGE, "version is not 1"),
    "too long": ("swapfile.img", 1028, b"\0\0\0\x10", Reason.TRUNCATED_IMAGE, "truncated: 4194304 bytes"),
    "stale": ("swapfile.img", 31 * PAGE, b"later", Reason.SWAP_FOREIGN, "at another time: slot 31"),
    "stale disk": ("swapfs.img", 194 * PAGE, b"later", Reason.SWAP_FOREIGN, "at another time: slot 31"),
    "no swap on the disk": ("swapfs.img", 163 * PAGE + 4086, b"x", Reason.UNSUPPORTED_FORMAT, "no SWAPSPACE2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_images_that_are_refused_by_name(open_with: Opener, tmp_path: Path, case: str) -> None:
    name, at, data, reason, why = REFUSED[case]
    refused(open_with, changed(f"qemu/{name}", tmp_path, at, data), reason, why)


@pytest.mark.parametrize(
    ("name", "size", "why"),
    [
        ("swap.img", 4 << 20, "truncated: 4194304 bytes of 8388608"),
        ("swap.img", (8 << 20) - 1, "truncated"),
        ("swap.img", 4000, "less than a swap area's header"),
        ("swapfile.img", 1 << 20, "truncated"),
    ],
)
def test_images_that_end_too_early(open_with: Opener, tmp_path: Path, name: str, size: int, why: str) -> None:
    refused(open_with, changed(f"qemu/{name}", tmp_path, 0, b"", size), Reason.TRUNCATED_IMAGE, why)


def test_a_longer_image_is_another(open_with: Opener, tmp_path: Path) -> None:
    path = changed("qemu/swap.img", tmp_path, 8 << 20, bytes(PAGE))
    refused(open_with, path, Reason.SWAP_FOREIGN, "its size is 8392704, the kernel's 8388608")


def refused(open_with: Opener, path: Path, reason: Reason, why: str, dump: str = "qemu/vmcore.kdump") -> None:
    with pytest.raises(KvmError, match=why) as caught:
        open_with(dump, [path])
    assert caught.value.reason is reason
    assert caught.value.message.startswith(path.name)
    assert caught.value.metadata["path"] == path.name


# Of one geometry, with the kernel's own header or none in the dump: all that tells them apart is what is in them.
@pytest.mark.parametrize(("dump", "other"), [("qemu", "la57"), ("la57", "hole"), ("hole", "qemu"), ("kdump", "qemu")])
def test_an_image_of_another_run_of_the_same_machine(open_with: Opener, dump: str, other: str) -> None:
    refused(
        open_with,
        fixture(f"{other}/swap.img").path,
        Reason.SWAP_FOREIGN,
        r"at another time: 1 of 1 processes' stacks are not what the kernel put there",
        f"{dump}/vmcore.kdump",
    )


@pytest.mark.parametrize("dump", DUMPS)
def test_what_is_left_of_an_image_without_its_stacks(open_with: Opener, dump: str, tmp_path: Path) -> None:
    """The page with the auxiliary vector zeroed, as if its slot had been used for something else since."""
    name = f"{dump.partition('/')[0]}/swap.img"
    whole = fixture(name).path.read_bytes()
    image = open_with(dump, [name])
    [place] = [at for at in _vectors(image, dump) if at is not None]
    assert place in whole
    path = tmp_path / "swap.img"
    path.write_bytes(whole.replace(place, bytes(len(place))))
    refused(open_with, path, Reason.SWAP_FOREIGN, "at another time", dump)


def _vectors(image: Any, dump: str) -> list[bytes | None]:
    """What drgn reads of the vectors that processes have in the partition: AT_RANDOM's entry."""
    [process] = [each for each in fixture(dump).truth["processes"] if each.get("zoo") == "swapped"]
    saved = find_task(image.kernel.prog, process["pid"]).mm.saved_auxv
    pairs = [(int(saved[i]), int(saved[i + 1])) for i in range(0, len(saved), 2)]
    return [key.to_bytes(8, "little") + value.to_bytes(8, "little") if key == 25 else None for key, value in pairs]


def test_the_same_area_twice(open_with: Opener) -> None:
    with pytest.raises(KvmError, match=r"the same swap area as swapfile\.img") as caught:
        open_with("qemu/vmcore.kdump", images("qemu/", "swapfile.img", "swapfs.img"))
    assert caught.value.reason is Reason.SWAP_FOREIGN


def test_a_swap_file_of_another_dump(open_with: Opener) -> None:
    with pytest.raises(KvmError, match="at another time") as caught:
        open_with("debian-6.1-panic/vmcore.kdump", images("qemu/", "swapfile.img"))
    assert caught.value.reason is Reason.SWAP_FOREIGN
