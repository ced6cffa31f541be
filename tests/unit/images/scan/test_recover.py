"""Dumps without VMCOREINFO: real ones whose note was taken away, in every format that has none; and what lies."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from images import fixture
from kernel_truth import unnoted, wiped
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files, Image
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.program import open_file
from kvmd.images.registry import open_image
from kvmd.v1 import memory_pb2, process_pb2

DUMPS = ["qemu/vmcore.kdump", "la57/vmcore.kdump", "linux-5.10/vmcore.kdump", "linux-5.15/vmcore.kdump"]
NO_DATA = ["arm64-6.1/vmcore.kdump", "x86-no-data-symbols/vmcore.kdump"]
PHYSICAL = memory_pb2.ADDRESS_SPACE_PHYSICAL
CHUNK = 1 << 20

Opened = Callable[[bytes | Path], LinuxImage]


@pytest.fixture
def opens(tmp_path: Path) -> Iterator[Opened]:
    """Open bytes, or a file."""
    fds: list[int] = []

    def image(what: bytes | Path) -> Image:
        path = what if isinstance(what, Path) else tmp_path / f"core{len(fds)}"
        if isinstance(what, bytes):
            path.write_bytes(what)
        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return open_image(Files(File(fds[-1], path.name)))

    yield image  # type: ignore[misc] # all of these are Linux's
    for fd in fds:
        os.close(fd)


def facts(image: LinuxImage) -> dict[str, Any]:
    info = image.info()
    names = ("release", "version", "banner", "kaslr_offset", "phys_base", "build_id", "paging_levels", "memory_bytes")
    found = {name: getattr(info, name) for name in names}
    tasks = [(p.pid, p.comm, p.ppid) for p in image.processes(process_pb2.GetProcsRequest())]
    return found | {"tasks": tasks, "log": len(list(image.log())), "types": info.types}


@pytest.mark.parametrize("name", DUMPS + NO_DATA)
def test_the_kernels_own_text(opens: Opened, name: str) -> None:
    whole, image = opens(fixture(name).path), opens(unnoted(name))
    assert image.kernel.info.text.strip() == whole.kernel.info.text.strip()
    assert facts(image) == facts(whole)
    assert image.info().symbols == whole.info().symbols


@pytest.mark.parametrize("name", DUMPS)
def test_made_anew(opens: Opened, name: str) -> None:
    whole, image = opens(fixture(name).path), opens(wiped(name))
    assert facts(image) == facts(whole)
    assert image.info().symbols == "scan"
    assert b"vmap_area_list" not in image.kernel.info.text
    truth = fixture(name).truth["kallsyms"]
    assert {s.name: s.value for s in image.symbols(list(truth))} == truth


def runs(name: str) -> Iterator[tuple[int, bytes]]:
    """What a dump holds of physical memory, page by page."""
    with fixture(name).path.open("rb") as file:
        opened = open_file(File(file.fileno(), name))
        image = LinuxImage(Files(File(file.fileno(), name)))
        for run in opened.layout.runs():  # type: ignore[attr-defined]
            for at in range(run.start, run.stop, CHUNK):
                yield at, image.read(at, min(CHUNK, run.stop - at), PHYSICAL)


def lime(name: str, version: int = 1) -> bytes:
    return b"".join(struct.pack("<4sIQQ8x", b"EMiL", version, at, at + len(data) - 1) + data for at, data in runs(name))


def raw(name: str) -> bytes:
    out = bytearray()
    for at, data in runs(name):
        out += bytes(max(at - len(out), 0))
        out[at : at + len(data)] = data
    return bytes(out)


@pytest.mark.parametrize("name", ["hole/vmcore.kdump", "linux-5.10/vmcore.kdump", "arm64-6.1/vmcore.kdump"])
def test_lime(opens: Opened, name: str) -> None:
    whole, image = opens(fixture(name).path), opens(lime(name))
    assert image.info().format == "lime"
    assert facts(image) == facts(whole)
    with pytest.raises(KvmError) as caught:
        image.read(1 << 40, 1, PHYSICAL)
    assert caught.value.reason is Reason.BEYOND_DUMP


@pytest.mark.parametrize("name", NO_DATA)
def test_lime_of_kernels_that_tell_nothing(opens: Opened, name: str) -> None:
    whole, image = opens(fixture(name).path), opens(lime(name).replace(b"OSRELEASE=", bytes(10)))
    assert image.info().format == "lime"
    assert image.info().symbols == "scan"
    assert b"SIZE(page)" not in image.kernel.info.text
    assert facts(image) == facts(whole)


def test_raw(opens: Opened) -> None:
    whole, image = opens(fixture("qemu/vmcore.kdump").path), opens(raw("qemu/vmcore.kdump"))
    assert image.info().format == "raw"
    assert facts(image) == facts(whole)


def fails(opens: Opened, data: bytes) -> KvmError:
    began = time.monotonic()
    with pytest.raises(KvmError) as caught:
        opens(data)
    assert time.monotonic() - began < 20
    return caught.value


HEAD = struct.pack("<4sIQQ8x", b"EMiL", 1, 0, 4095) + bytes(4096)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (HEAD, Reason.NO_VMCOREINFO),
        (HEAD + HEAD, Reason.CORRUPT_IMAGE),  # ranges that overlap
        (HEAD + HEAD[:20], Reason.TRUNCATED_IMAGE),
        (HEAD + b"x" * 32, Reason.CORRUPT_IMAGE),
        (struct.pack("<4sIQQ8x", b"EMiL", 2, 0, 4095), Reason.UNSUPPORTED_FORMAT),
        (struct.pack("<4sIQQ8x", b"EMiL", 1, 1, 0), Reason.CORRUPT_IMAGE),
        (struct.pack("<4sIQQ8x", b"EMiL", 1, 0, (1 << 64) - 1), Reason.CORRUPT_IMAGE),
        (b"".join(struct.pack("<4sIQQ8xx", b"EMiL", 1, i, i) for i in range(5000)), Reason.CORRUPT_IMAGE),
    ],
)
def test_lime_headers_that_lie(opens: Opened, data: bytes, reason: Reason) -> None:
    assert fails(opens, data).reason is reason


@pytest.mark.parametrize("size", [4096, (16 << 20) + 1, 16 << 20, 64 << 20])
def test_what_is_no_memory(opens: Opened, size: int) -> None:
    assert fails(opens, bytes(size)).reason is Reason.UNSUPPORTED_FORMAT


def test_no_kernel_in_a_dump(opens: Opened) -> None:
    data = wiped("micro/raw")
    e = fails(opens, data)
    assert e.reason is Reason.NO_VMCOREINFO
    assert e.metadata["path"].startswith("core")


TEXTS = {
    "another release": (b"OSRELEASE=5.15.100-bed", b"OSRELEASE=5.15.101-bed"),
    "no page tables": (b"SYMBOL(swapper_pg_dir)=ffffffff", b"SYMBOL(swapper_pg_dir)=ffffffaf"),
    "unreadable": (b"PAGESIZE=4096", b"PAGESIZE=\xff\xff\xff\xff"),
    "no symbols": (b"SYMBOL(init_uts_ns)", b"SYMBOL(init_uts_xx)"),
    "another base": (b"NUMBER(phys_base)=-5", b"NUMBER(phys_base)=-6"),
    "no number": (b"NUMBER(phys_base)=", b"NUMBER(phys_base):"),
}


@pytest.mark.parametrize("how", TEXTS)
def test_a_text_that_lies_does_not_count(opens: Opened, how: str) -> None:
    name, (old, new) = "linux-5.15/vmcore.kdump", TEXTS[how]
    data = unnoted(name)
    assert old in data
    image = opens(data.replace(old, new))
    assert new not in image.kernel.info.text
    assert facts(image) == facts(opens(fixture(name).path))


def test_two_texts_that_fit_are_an_error(opens: Opened) -> None:
    data = unnoted("linux-5.15/vmcore.kdump")
    old, new = b"SIZE(page)=64", b"SIZE(page)=96"
    before, _, after = data.rpartition(old)
    e = fails(opens, before + new + after)
    assert e.reason is Reason.AMBIGUOUS
    assert "several kernels" in e.message
