"""Files that are no dump, or a broken one, through the daemon: a typed error each, and nothing else disturbed."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import libkvm
from daemon import Daemon, running_daemon
from images import fixture
from procs import nothing_left

MICRO = fixture("micro/zlib").path.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dumps")


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    folders = [folder, fixture("qemu/vmcore.kdump").path.parent]
    with running_daemon(folders, "[limits]\nworker_linger = 0.1\n") as running:
        yield running


@pytest.fixture
def undisturbed(daemon: Daemon) -> Iterator[libkvm.Client]:
    """A client with a descriptor that must work as before when the test is over."""
    image = fixture("qemu/vmcore.kdump")
    with libkvm.connect(daemon.target) as client, client.open(corefile=image.path) as kernel:
        pid = daemon.process.pid
        with nothing_left(pid):
            yield client
        assert daemon.process.poll() is None
        assert kernel.read(image.truth["kallsyms"]["linux_banner"], 13) == b"Linux version"


def refused(client: libkvm.Client, name: object, **more: object) -> str:
    """The reason that an open is refused with; it takes less than 2 s."""
    began = time.monotonic()
    with pytest.raises(libkvm.KvmError) as failure, client.open(corefile=str(name), **more):
        pass
    assert time.monotonic() - began < 2
    assert failure.value.message
    assert failure.value.reason.value != "INTERNAL"
    return failure.value.reason.value


def part(source: Path, target: Path, percent: int) -> None:
    with source.open("rb") as whole, target.open("wb") as cut:
        shutil.copyfileobj(whole, cut)
        cut.truncate(source.stat().st_size * percent // 100)


@pytest.mark.parametrize("percent", [1, 50, 99])
@pytest.mark.parametrize("form", ["vmcore.kdump", "vmcore.elfd"])
def test_truncated(undisturbed: libkvm.Client, folder: Path, form: str, percent: int) -> None:
    """What opens nevertheless answers each read with the right bytes or a typed error."""
    image = fixture(f"qemu/{form}")
    target = folder / f"cut-{percent}-{form}"
    part(image.path, target, percent)
    began = time.monotonic()
    try:
        kernel = undisturbed.open(corefile=target)
    except libkvm.KvmError as failure:
        assert failure.reason.value in ("TRUNCATED_IMAGE", "CORRUPT_IMAGE", "NO_VMCOREINFO", "SHORT_FILE")
    else:
        with kernel:
            try:
                pids = [process.pid for process in kernel.processes()]
            except libkvm.KvmError as failure:
                assert failure.reason.value not in ("INTERNAL", "WORKER_DIED")
            else:
                assert sorted(image.truth["pids_at_end"]) == pids
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "EMPTY_FILE"),
        (b"this is a text file\n", "UNSUPPORTED_FORMAT"),
        (b"\x7fELF", None),
        (b"KDUMP   ", None),
        (b"makedumpfile", None),
        (b"\0" * 65536, "UNSUPPORTED_FORMAT"),
    ],
)
def test_no_dump(undisturbed: libkvm.Client, folder: Path, content: bytes, reason: str | None) -> None:
    (folder / "none").write_bytes(content)
    answer = refused(undisturbed, folder / "none")
    assert answer == reason or (reason is None and answer in ("TRUNCATED_IMAGE", "CORRUPT_IMAGE", "UNSUPPORTED_FORMAT"))


def test_elf_that_is_no_core(undisturbed: libkvm.Client, folder: Path) -> None:
    shutil.copy("/bin/true", folder / "true")
    assert refused(undisturbed, folder / "true") == "UNSUPPORTED_FORMAT"


def test_part_of_a_split_dump(undisturbed: libkvm.Client, folder: Path) -> None:
    shutil.copy(MICRO / "split-zlib.1", folder)
    assert refused(undisturbed, folder / "split-zlib.1") == "SPLIT_IMAGE"


# struct disk_dump_header and kdump_sub_header of makedumpfile 1.7.2: name, offset, size.
FIELDS = [
    ("block_size", 0x1AC, 4),
    ("sub_hdr_size", 0x1B0, 4),
    ("bitmap_blocks", 0x1B4, 4),
    ("max_mapnr", 0x1B8, 4),
    ("nr_cpus", 0x1D4, 4),
    ("offset_vmcoreinfo", 0x1000 + 0x20, 8),
    ("size_vmcoreinfo", 0x1000 + 0x28, 8),
    ("offset_note", 0x1000 + 0x30, 8),
    ("size_note", 0x1000 + 0x38, 8),
    ("offset_eraseinfo", 0x1000 + 0x40, 8),
    ("size_eraseinfo", 0x1000 + 0x48, 8),
    ("max_mapnr_64", 0x1000 + 0x60, 8),
]


@pytest.mark.parametrize("value", [0, -1, 1], ids=["zero", "unsigned maximum", "signed maximum"])
@pytest.mark.parametrize("field", FIELDS, ids=[field[0] for field in FIELDS])
def test_length_fields_of_a_kdump_header(
    undisturbed: libkvm.Client, folder: Path, field: tuple[str, int, int], value: int
) -> None:
    """Each field at 0 and at its maximum: opened or refused, in 2 s, and never an accident."""
    _, offset, size = field
    bits = {0: 0, -1: (1 << size * 8) - 1, 1: (1 << size * 8 - 1) - 1}[value]
    data = bytearray((MICRO / "zlib").read_bytes())
    struct.pack_into({4: "<I", 8: "<Q"}[size], data, offset, bits)
    (folder / "mutated").write_bytes(data)
    began = time.monotonic()
    try:
        with undisturbed.open(corefile=folder / "mutated") as kernel:
            kernel.read(fixture("micro/zlib").truth["kallsyms"]["linux_banner"], 13)
    except libkvm.KvmError as failure:
        assert failure.reason.value not in ("INTERNAL", "WORKER_DIED", "WORKER_HUNG", "DEADLINE")
    assert time.monotonic() - began < 2


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def _device(path: Path) -> None:
    os.mknod(path, 0o20600, os.makedev(1, 5))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_fifo, "PATH_FIFO"),
        (_socket, "PATH_SOCKET"),
        pytest.param(_device, "PATH_DEVICE", marks=pytest.mark.skipif(os.geteuid() != 0, reason="mknod needs root")),
        (lambda path: path.mkdir(), "PATH_DIRECTORY"),
        (lambda path: path.symlink_to(fixture("qemu/vmcore.kdump").path), "PATH_SYMLINK"),
        (lambda path: path.symlink_to("/etc/shadow"), "PATH_SYMLINK"),
    ],
)
def test_names_of_other_things(
    undisturbed: libkvm.Client, folder: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = folder / "thing"
    make(path)
    try:
        assert refused(undisturbed, path) == reason
        assert refused(undisturbed, "thing") == reason
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_names_outside(undisturbed: libkvm.Client, folder: Path) -> None:
    assert refused(undisturbed, "/etc/passwd") == "PATH_OUTSIDE"
    assert refused(undisturbed, "/etc/not-there") == "PATH_OUTSIDE"
    assert refused(undisturbed, f"{folder}/../x") == "PATH_DOTDOT"
    assert refused(undisturbed, f"{folder}-more/x") == "PATH_OUTSIDE"
    assert refused(undisturbed, f"{folder}/not-there") == "SOURCE_NOT_FOUND"
    assert refused(undisturbed, "not-there") == "SOURCE_NOT_FOUND"
    assert refused(undisturbed, "/" + "x" * 1023) == "PATH_TOO_LONG"
    assert refused(undisturbed, "a\0b") == "BAD_ARGUMENT"


def test_execfile(undisturbed: libkvm.Client, folder: Path) -> None:
    image = fixture("qemu/vmcore.kdump").path
    (folder / "text").write_text("this is a text file")
    foreign = folder / "foreign"
    shutil.copy("/bin/true", foreign)
    assert refused(undisturbed, image, execfile=folder / "text") == "EXEC_NOT_ELF"
    assert refused(undisturbed, image, execfile=foreign) == "EXEC_FOREIGN"
    assert refused(undisturbed, image, execfile="/nonexistent") == "PATH_OUTSIDE"
