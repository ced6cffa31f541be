"""Opened dumps for the tests of images. A dump is opened once a session; its file stays open as long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from images import fixture
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.registry import open_image

DUMPS = [
    "qemu/vmcore.kdump",
    "qemu/vmcore.elfd",
    "la57/vmcore.kdump",
    "hole/vmcore.kdump",
    "kdump/vmcore.kdump",
    "kdump/vmcore.elfd",
    "debian-6.1-panic/vmcore.kdump",
]

Bytes = Callable[[bytes], LinuxImage]
Opener = Callable[..., LinuxImage]


class Opened(NamedTuple):
    """An image, its truth and its fixture's name."""

    image: LinuxImage
    truth: dict[str, Any]
    name: str


@contextmanager
def opened(path: Path) -> Iterator[LinuxImage]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        image = open_image(Files(File(fd, path.name)))
        assert isinstance(image, LinuxImage)
        yield image
    finally:
        os.close(fd)


@pytest.fixture(scope="session", params=DUMPS)
def dump(request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Every large dump in turn."""
    path, truth = fixture(request.param)
    with opened(path) as image:
        yield Opened(image, truth, request.param)


@pytest.fixture(scope="session")
def qemu() -> Iterator[Opened]:
    path, truth = fixture("qemu/vmcore.kdump")
    with opened(path) as image:
        yield Opened(image, truth, "qemu/vmcore.kdump")


@pytest.fixture(scope="session")
def debian() -> Iterator[Opened]:
    path, truth = fixture("debian-6.1-panic/vmcore.kdump")
    with opened(path) as image:
        yield Opened(image, truth, "debian-6.1-panic/vmcore.kdump")


@pytest.fixture(scope="module")
def open_with() -> Iterator[Opener]:
    """Open a fixture's dump with swap images: names below tests/data, or paths."""
    fds: list[int] = []

    def opened_file(path: Path) -> File:
        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return File(fds[-1], path.name)

    def open_dump(name: str, swap: Sequence[str | Path] = (), *, any_swap: bool = False) -> LinuxImage:
        files = tuple(opened_file(each if isinstance(each, Path) else fixture(each).path) for each in swap)
        image = open_image(Files(opened_file(fixture(name).path), swap=files, any_swap=any_swap))
        assert isinstance(image, LinuxImage)
        return image

    yield open_dump
    for fd in fds:
        os.close(fd)


@pytest.fixture
def from_bytes(tmp_path: Path) -> Iterator[Bytes]:
    """Open an image whose core file holds the given bytes."""
    fds: list[int] = []

    def open_bytes(data: bytes) -> LinuxImage:
        path = tmp_path / f"core{len(fds)}"
        path.write_bytes(data)
        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        image = open_image(Files(File(fds[-1], path.name)))
        assert isinstance(image, LinuxImage)
        return image

    yield open_bytes
    for fd in fds:
        os.close(fd)
