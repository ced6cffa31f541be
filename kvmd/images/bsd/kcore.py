"""The container of NetBSD's crash dumps: kcore(5)'s headers, in a file and on a dump device.

A file is a kcore_hdr, a segment of kind CPU with what the machine needs to find its page tables, and a segment of kind
DATA with the memory. On its dump device the kernel writes only a segment header with kcore's magic, the CPU data, and
the memory; kvm_dump_mkheader(3) makes the rest. Sources: NetBSD sys/sys/kcore.h 1.3, sys/sys/core.h, aout_mids.h;
lib/libkvm/kvm.c 1.110 for what is accepted. Only machines that are little-endian are known here.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import NamedTuple

from kvmd.errors import Reason, error
from kvmd.images.linux.source import Source, exact

KCORE, SEGMENT = 0x8FCA, 0x8FAC
_CPU, _DATA = 1, 2
_HEADER, _SEGMENT = struct.Struct(">I"), struct.Struct("<I")
MOST_CPU_DATA = 16 << 20
"""The most CPU data that are read: a million runs of memory, in a sparse dump."""


class Machine(NamedTuple):
    """An architecture: uname's name, and to how many bytes its headers are aligned."""

    name: str
    align: int


MACHINES = {157: Machine("x86_64", 8), 183: Machine("aarch64", 16)}
_OTHERS = {
    134: "i386", 135: "m68k", 136: "m68k4k", 137: "ns32532", 138: "sparc", 139: "pmax", 141: "alpha", 142: "mips",
    143: "arm6", 145: "sh3", 149: "powerpc", 150: "vax", 153: "m88k", 154: "hppa", 156: "sparc64", 159: "ia64",
}  # fmt: skip


class Headers(NamedTuple):
    """What precedes the memory.

    :ivar machine: a key of MACHINES.
    :ivar cpu: the CPU data.
    :ivar data: the offset of the memory.
    :ivar header_size: of kcore_hdr with its padding, as ``segment_size`` is of kcore_seg.
    """

    machine: int
    cpu: bytes
    data: int
    header_size: int
    segment_size: int

    def file(self, memory_bytes: int) -> bytes:
        """The headers of a file; of the memory's size the low 32 bits, for which there is room."""
        header = _HEADER.pack(self.machine << 16 | KCORE) + struct.pack("<HHI", self.header_size, self.segment_size, 2)
        sizes = {_CPU: len(self.cpu), _DATA: memory_bytes & 0xFFFFFFFF}
        cpu, data = (
            (_HEADER.pack(flag << 26 | SEGMENT) + _SEGMENT.pack(size)).ljust(self.segment_size, b"\0")
            for flag, size in sizes.items()
        )
        return header.ljust(self.header_size, b"\0") + cpu + self.cpu + data


def magic(head: bytes) -> tuple[int, int, int]:
    """Take a header's first word apart: flags, machine and magic."""
    (word,) = _HEADER.unpack_from(head)
    return word >> 26, word >> 16 & 0x3FF, word & 0xFFFF


def in_file(source: Source) -> Headers:
    """Read a file's headers.

    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE, UNSUPPORTED_FORMAT of another machine's.
    """
    head = exact(source, 0, 12, "kcore's header")
    _, machine, number = magic(head)
    if number != KCORE:
        raise error(Reason.UNSUPPORTED_FORMAT, "not a NetBSD kernel core")
    if machine not in MACHINES:
        name = _OTHERS.get(machine, f"machine {machine}")
        raise error(Reason.UNSUPPORTED_FORMAT, f"a NetBSD kernel core of {name}, which is not supported")
    header_size, segment_size, count = struct.unpack_from("<HHI", head, 4)
    if count != 2 or header_size < 12 or segment_size < 8:
        raise error(Reason.CORRUPT_IMAGE, "kcore's header makes no sense: a kernel core has two segments")
    size = _segment(source, header_size, _CPU, "the CPU segment")
    if size > MOST_CPU_DATA:
        raise error(Reason.CORRUPT_IMAGE, f"the CPU segment of {size} bytes makes no sense")
    cpu = exact(source, header_size + segment_size, size, "the CPU data")
    data = header_size + segment_size + size
    _segment(source, data, _DATA, "the data segment's header")
    return Headers(machine, cpu, data + segment_size, header_size, segment_size)


def _segment(source: Source, offset: int, flag: int, what: str) -> int:
    """The size in a segment's header, which wraps around at 4 GiB."""
    head = exact(source, offset, 8, what)
    flags, _, number = magic(head)
    if number != SEGMENT or flags != flag:
        raise error(Reason.CORRUPT_IMAGE, f"{what} is not where it should be")
    return int(_SEGMENT.unpack_from(head, 4)[0])


def on_device(source: Source, offset: int) -> Headers:
    """Read the headers that a kernel left on its dump device; what is wrong is said as kvm_dump_mkheader(3) does.

    :raises KvmError: UNSUPPORTED_FORMAT where no dump is there; TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """
    head = source.read(offset, 8)
    if len(head) < 8:
        message = f"read 8 bytes at offset {offset:x} for cpu_hdr failed: {os.strerror(errno.EINVAL)}"
        raise error(Reason.TRUNCATED_IMAGE, message)
    if not has_device_form(head):
        raise error(Reason.UNSUPPORTED_FORMAT, "invalid magic in cpu_hdr")
    _, machine, _ = magic(head)
    align, size = MACHINES[machine].align, int(_SEGMENT.unpack_from(head, 4)[0])
    start = offset + (8 + align - 1 & -align)
    if size > MOST_CPU_DATA:
        raise error(Reason.CORRUPT_IMAGE, "no cpu_data")
    cpu = source.read(start, size)
    if len(cpu) < size:
        raise error(Reason.TRUNCATED_IMAGE, f"size {len(cpu)} != cpu_hdr.csize {size}")
    return Headers(machine, cpu, start + size, 12 + align - 1 & -align, 8 + align - 1 & -align)


def has_device_form(head: bytes) -> bool:
    """Whether 8 bytes are the header of a dump on a device, of a machine that is known."""
    if len(head) < 8:
        return False
    flags, machine, number = magic(head)
    return number == KCORE and flags == _CPU and machine in MACHINES
