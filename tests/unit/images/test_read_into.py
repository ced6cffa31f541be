"""Filling a buffer: the same bytes as reading, or nothing, for every kind of dump."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import fixture
from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.source import FileSource, FlatSource
from kvmd.v1 import memory_pb2

KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
FORMS = ["qemu/vmcore.elfd", "kdump/vmcore.elfd", "qemu/vmcore.kdump"]


@pytest.fixture(scope="module", params=FORMS)
def image(request: pytest.FixtureRequest) -> Iterator[LinuxImage]:
    fd = os.open(fixture(request.param).path, os.O_RDONLY)
    yield LinuxImage(Files(File(fd, request.param)))
    os.close(fd)


def outcome(image: LinuxImage, address: int, length: int, space: int) -> bytes | None:
    try:
        return image.read(address, length, space)
    except KvmError:
        return None


@pytest.mark.parametrize("space", [KERNEL, PHYSICAL])
def test_as_a_read_does(image: LinuxImage, space: int) -> None:
    kernel, picked, filled = image.kernel, random.Random(4), 0
    found = kernel.builtin("page_offset_base")
    base = int.from_bytes(kernel.memory.kernel(found.value, 8), "little") if space == KERNEL and found else 0
    if space == KERNEL:
        base = base or 0xFFFF888000000000
    for _ in range(400):
        address = base + picked.randrange(160 << 20)
        length = picked.choice([1, 100, 5000, 70_000, 1 << 20])
        into = bytearray(length)
        if image.read_into(address, memoryview(into), space):
            filled += 1
            assert bytes(into) == outcome(image, address, length, space)
    assert filled


def test_what_dumps_hold_is_filled(image: LinuxImage) -> None:
    """All that can be read of physical memory can be filled in."""
    picked = random.Random(5)
    for _ in range(300):
        address, length = picked.randrange(160 << 20), picked.choice([8, 4096, 20_000])
        expected = outcome(image, address, length, PHYSICAL)
        assert image.read_into(address, memoryview(bytearray(length)), PHYSICAL) == (expected is not None)


@pytest.mark.parametrize("address", [0, (1 << 64) - 8, 1 << 62, 0xFFFF800000000000])
@pytest.mark.parametrize("space", [KERNEL, PHYSICAL, memory_pb2.ADDRESS_SPACE_USER, 0])
def test_addresses_with_nothing_behind_them(image: LinuxImage, address: int, space: int) -> None:
    if image.read_into(address, memoryview(bytearray(1 << 16)), space):
        assert outcome(image, address, 1 << 16, space) is not None


def test_sources(tmp_path: Path) -> None:
    plain = fixture("micro/flat-raw").path
    with plain.open("rb") as file:
        raw = FileSource(file.fileno())
        flat = FlatSource(raw)
        for source in (raw, flat):
            for offset in (0, 100, 5000, source.size - 10, source.size, source.size + 10, -1):
                into = bytearray(64)
                count = source.read_into(offset, memoryview(into))
                assert bytes(into[:count]) == source.read(offset, 64)[:count]
                assert bool(count) == bool(source.read(offset, 64))
