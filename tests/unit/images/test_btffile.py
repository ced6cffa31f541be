"""Raw BTF as execfile."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from btf import Builder
from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.base import File, Files
from kvmd.images.linux.btffile import BtfFile
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.memory import in_chunks
from kvmd.images.linux.packed import unpacked
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import process_pb2

DUMP = "qemu/vmcore.kdump"
With = Callable[[bytes | None], LinuxImage]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[With]:
    """Opens the dump with an execfile of given bytes."""
    fds = [os.open(fixture(DUMP).path, os.O_RDONLY | os.O_CLOEXEC)]

    def image(data: bytes | None) -> LinuxImage:
        if data is None:
            return LinuxImage(Files(File(fds[0], "vmcore")))
        path = tmp_path / f"types{len(fds)}"
        path.write_bytes(data)
        fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return LinuxImage(Files(File(fds[0], "vmcore"), File(fds[-1], "types")))

    yield image
    for fd in fds:
        os.close(fd)


def blob(name: str) -> bytes:
    fd = os.open(fixture(name).path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel = LinuxImage(Files(File(fd, name))).kernel
        start, stop = (kernel.address(symbol) for symbol in ("__start_BTF", "__stop_BTF"))
        return in_chunks(kernel.memory.kernel, start, stop - start)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def own() -> bytes:
    return blob(DUMP)


def fault(open_: With, data: bytes) -> KvmError:
    with pytest.raises(KvmError) as caught:
        open_(data).kernel.need_types()
    assert caught.value.metadata["path"] == "types"
    return caught.value


def test_the_kernels_own_gives_the_types(opened: With, own: bytes) -> None:
    image, plain = opened(own), opened(None)
    assert image.info().types == "btf"
    assert image.info().symbols == "kallsyms"
    assert image.kernel_name() == "types"
    assert image.kernel._types is image.kernel.execfile.types  # type: ignore[union-attr]
    request = process_pb2.GetProcsRequest()
    assert list(image.processes(request)) == list(plain.processes(request))
    assert image.symbols(["init_task"]) == plain.symbols(["init_task"])


def test_another_kernels_is_refused(opened: With) -> None:
    other = fault(opened, blob("debian-6.1-panic/vmcore.kdump"))
    assert other.reason is Reason.EXEC_FOREIGN
    assert "another kernel" in other.message


def test_one_of_another_length_is_refused(opened: With, own: bytes) -> None:
    """Whatever VMCOREINFO tells agrees; a byte more does not."""
    strings = struct.unpack_from("<I", own, 20)[0]
    longer = own[:20] + struct.pack("<I", strings + 1) + own[24:] + b"\0"
    assert opened(longer).info().types == ""
    longer_fault = fault(opened, longer)
    assert longer_fault.reason is Reason.EXEC_FOREIGN
    assert f"{len(own)} bytes" in longer_fault.message


@pytest.mark.parametrize("change", [lambda own: own[:-100], lambda own: own[:10], lambda own: own[:24]])
def test_what_is_torn(opened: With, own: bytes, change: Callable[[bytes], bytes]) -> None:
    assert fault(opened, change(own)).reason is Reason.CORRUPT_DATA


INFO = VmcoreInfo.parse(
    b"OSRELEASE=6.1\nSIZE(list_head)=16\nOFFSET(list_head.prev)=8\nSIZE(nothing)=7\nOFFSET(list_head.next)=0\nX=1\n"
)


def small(size: int = 16, offset: int = 64) -> bytes:
    made = Builder()
    pointer = made.add(2)
    made.compound("list_head", size, [("next", pointer, 0), ("prev", pointer, offset)])
    return made.bytes()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (small(), "too little"),
        (small(size=24), r"SIZE\(list_head\)"),
        (small(offset=128), r"OFFSET\(list_head.prev\)"),
        (Builder().bytes(), "too little"),
    ],
)
def test_facts_are_compared(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(KvmError, match=why) as caught:
        made(tmp_path, data)
    assert caught.value.reason is Reason.EXEC_FOREIGN


def made(folder: Path, data: bytes) -> Any:
    from drgn import Architecture, Platform, Program

    (folder / "types").write_bytes(data)
    with (folder / "types").open("rb") as file:
        named = File(file.fileno(), "types")
        return BtfFile(named, unpacked(named), INFO, Program(Platform(Architecture.X86_64)))


@given(st.binary(max_size=400), st.booleans())
@settings(deadline=None, max_examples=150)
def test_arbitrary_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes, headed: bool) -> None:
    if headed:
        half = len(data) // 8 * 4
        data = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, half, half, len(data) - half + 2) + data[:half] + b"\0"
        data += b"x" * 10
    with pytest.raises(KvmError) as caught:
        made(tmp_path_factory.getbasetemp(), data)
    assert caught.value.reason in (Reason.CORRUPT_DATA, Reason.EXEC_FOREIGN, Reason.NO_TYPES)
