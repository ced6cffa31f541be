"""BTF without a symbol that says where: found by its header, in the kernel's image.

Kernels hold BTF of programs, too; the kernel's own is the one that has every size and offset that VMCOREINFO tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import islice

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.btf import MAGIC
from kvmd.images.linux.kimage import KernelImage
from kvmd.images.linux.memory import Read, in_chunks
from kvmd.images.linux.order import Order
from kvmd.images.linux.types import Types

_HEADER = "HBBIIIII"
_MOST, _BLOBS = 64, 4  # headers that are looked at, and what is read whole
_LEAST, _LARGEST = 1 << 16, 1 << 26  # bytes; the kernel's is megabytes


def blobs(image: KernelImage, read: Read, order: Order) -> Iterator[tuple[int, bytes]]:
    """What looks like BTF in the kernel's image, whole; each with its address.

    :param read: reads kernel memory exactly, at most a chunk.
    :param order: the kernel's byte order.
    """
    head, given = struct.pack(order + "HBBI", MAGIC, 1, 0, struct.calcsize(order + _HEADER)), 0  # version 1, no flags
    for address in islice(image.find(head, 4), _MOST):
        data = blob_at(image, read, order, address)
        if data:
            yield address, data
            given += 1
        if given >= _BLOBS:
            return


def blob_at(image: KernelImage, read: Read, order: Order, address: int) -> bytes:
    """What begins with a header of BTF at an address, whole; nothing if it doesn't look like BTF, or can't be read."""
    header = struct.Struct(order + _HEADER)
    try:
        *_, types_at, types, strings_at, strings = header.unpack(read(address, header.size))
        length = header.size + strings_at + strings
        # As every compiler and pahole write it: types first, then strings, which begin and end with NUL.
        if types_at or strings_at != types or not _LEAST <= length <= _LARGEST or not image.holds(address, length):
            return b""
        ends = read(address + header.size + types, 1) + read(address + length - 1, 1)
        return in_chunks(read, address, length) if types % 4 == 0 and ends == b"\0\0" else b""
    except KvmError:
        return b""


def the_kernels(
    found: Iterator[tuple[int, bytes]], types_of: Callable[[bytes], Types | None]
) -> tuple[int, Types] | None:
    """The address and the types of the one that is the kernel's; None if none is.

    :param types_of: makes types of BTF if it is of this kernel.
    :raises KvmError: AMBIGUOUS if different ones are.
    """
    chosen: tuple[int, bytes, Types] | None = None
    for address, data in found:
        if chosen is not None and data == chosen[1]:
            continue
        types = types_of(data)
        if types is not None and chosen is not None:
            message = "the image holds several BTF that could be the kernel's"
            raise error(Reason.AMBIGUOUS, f"{message}; name a vmlinux with DWARF as execfile")
        if types is not None:
            chosen = address, data, types
    return (chosen[0], chosen[2]) if chosen else None
