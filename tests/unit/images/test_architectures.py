"""Dumps of architectures whose page tables nobody here knows: cores made by hand, with what such kernels tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from images import fixture
from kvmd.errors import KvmError, Reason
from kvmd.images.linux.image import LinuxImage
from kvmd.v1 import memory_pb2, process_pb2, stack_pb2
from kvmd.v1 import symbol_pb2 as pb

from .conftest import Bytes
from .test_elfcore import big_endian_core, core, note

RISCV64, PPC64, S390X, AARCH64, X86_64 = 243, 21, 22, 183, 62
KERNEL, PHYSICAL = memory_pb2.ADDRESS_SPACE_KERNEL, memory_pb2.ADDRESS_SPACE_PHYSICAL
RAM = 0x8000_0000
# Linux 6.12, kernel/vmcore_info.c and arch/riscv/kernel/vmcore_info.c.
INFO = b"""OSRELEASE=6.12.0
PAGESIZE=4096
SYMBOL(init_uts_ns)=ffffffff81700000
SYMBOL(swapper_pg_dir)=ffffffff81000000
SYMBOL(_stext)=ffffffff80002000
NUMBER(VA_BITS)=48
NUMBER(phys_ram_base)=2147483648
NUMBER(PAGE_OFFSET)=0xff60000000000000
NUMBER(va_kernel_pa_offset)=0xffffffff00000000
KERNELOFFSET=0
"""


def dump(machine: int, **fields: int) -> bytes:
    return core([(RAM, 8192, b"AB" * 4096)], note(text=INFO), machine=machine, **fields)


@pytest.fixture
def riscv64(from_bytes: Bytes) -> LinuxImage:
    return from_bytes(dump(RISCV64))


def test_a_riscv64_dump_tells_of_itself(riscv64: LinuxImage) -> None:
    info = riscv64.info()
    assert (info.format, info.release, info.page_size, info.symbols) == ("elf", "6.12.0", 4096, "vmcoreinfo")
    assert riscv64.read(RAM + 4094, 4, PHYSICAL) == b"ABAB"
    known, unknown = riscv64.symbols(["_stext", "init_task"])
    assert (known.value, known.source) == (0xFFFF_FFFF_8000_2000, pb.SYMBOL_SOURCE_VMCOREINFO)
    assert not unknown.found


@pytest.mark.parametrize(
    "ask",
    [
        lambda image: image.read(0xFFFF_FFFF_8000_2000, 8, KERNEL),
        lambda image: image.read(0x1000, 8, memory_pb2.ADDRESS_SPACE_USER, 1),
        lambda image: list(image.processes(process_pb2.GetProcsRequest())),
        lambda image: list(image.stacks(stack_pb2.GetStackRequest())),
        lambda image: list(image.pages(0)),
        lambda image: list(image.log()),
        lambda image: image.cpus(),
        lambda image: image.cpu_times(),
        lambda image: image.load_average(),
        lambda image: image.swap_areas(),
    ],
)
def test_what_needs_page_tables_is_unsupported(riscv64: LinuxImage, ask: Callable[[LinuxImage], Any]) -> None:
    with pytest.raises(KvmError) as caught:
        ask(riscv64)
    assert caught.value.reason is Reason.UNSUPPORTED
    assert caught.value.metadata["architecture"] == "RISCV64"
    assert "RISCV64" in caught.value.message


def test_a_fault_names_its_address(riscv64: LinuxImage) -> None:
    with pytest.raises(KvmError) as caught:
        riscv64.read(0xFFFF_FFFF_8000_2000, 8, KERNEL)
    assert (caught.value.address, caught.value.metadata["readable"]) == (0xFFFF_FFFF_8000_2000, "0")


@pytest.mark.parametrize("machine", [PPC64, S390X, 8, 40])
def test_other_machines_are_refused(from_bytes: Bytes, machine: int) -> None:
    """And s390x, if the file says that it is little-endian."""
    with pytest.raises(KvmError, match=f"ELF machine {machine}, which is not supported") as caught:
        from_bytes(dump(machine))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


@pytest.mark.parametrize("machine", [AARCH64, X86_64, PPC64])
def test_other_big_endian_machines_are_refused(from_bytes: Bytes, machine: int) -> None:
    with pytest.raises(KvmError, match=rf"ELF machine {machine} \(big-endian\), which is not supported") as caught:
        from_bytes(big_endian_core([(RAM, b"AB" * 4096)], INFO, machine))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_core_of_32_bits_is_refused(from_bytes: Bytes) -> None:
    with pytest.raises(KvmError, match="only ELF64") as caught:
        from_bytes(dump(S390X, klass=1))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT


def test_a_dump_in_other_pages_than_the_kernels(from_bytes: Bytes) -> None:
    """As QEMU 7.2 writes KDUMP of arm64, in pages of 64 KiB."""
    data = fixture("arm64-6.1/vmcore.kdump").path.read_bytes()
    assert data.count(b"PAGESIZE=4096\n") > 0
    with pytest.raises(KvmError, match="ELF dump") as caught:
        from_bytes(data.replace(b"PAGESIZE=4096\n", b"PAGESIZE=8192\n"))
    assert caught.value.reason is Reason.UNSUPPORTED_FORMAT
