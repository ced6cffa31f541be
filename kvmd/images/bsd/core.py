"""What every format of a BSD dump is to the rest: places of memory in a file; and reads of such memory.

A fault carries what the BSD's libkvm says of it: ``dialect``, whose libkvm, and ``translator``, the text that its
translation leaves before kvm_read's own. libkvm prints both in the order of that BSD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux.source import Source
from kvmd.v1 import memory_pb2

PAGE = 4096
END = 1 << 64
READ, WRITE, EXECUTE = 1, 2, 4
"""Protections of a page."""


class Place(NamedTuple):
    """Where bytes are: the offset in the file, and how many follow there."""

    offset: int
    length: int


class Core(Protocol):
    """A dump whose headers were understood. Its methods raise only :class:`kvmd.errors.KvmError`."""

    @property
    def format(self) -> str:
        """The name of the format, as :attr:`Info.format` has it."""

    @property
    def machine(self) -> str:
        """uname(2)'s name of the architecture on Linux: ``x86_64`` or ``aarch64``."""

    @property
    def page_size(self) -> int:
        """In bytes."""

    def kernel(self, address: int) -> Place:
        """Translate a kernel virtual address."""

    def physical(self, address: int) -> Place:
        """Find a physical address."""

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """Walk what the kernel maps, ascending, from the page on that holds ``start``."""


def fault(dialect: str, reason: Reason, message: str, translator: str = "") -> KvmError:
    """A translation that failed; :func:`read` adds the address.

    :param dialect: ``netbsd`` or ``freebsd``.
    :param translator: the text of that BSD's libkvm; empty where it has none.
    """
    words = {"translator": translator} if translator else {}
    return error(reason, message, dialect=dialect, **words)


def read(source: Source, find: Callable[[int], Place], address: int, length: int) -> bytes:
    """Read memory exactly, place by place.

    :raises KvmError: as ``find``; SHORT_FILE, NOT_MAPPED at the end of the address space, SOURCE_IO; with metadata
        ``address``, the first byte that can't be read, and ``readable``, how many before it can. BAD_ARGUMENT.
    """
    if not 0 <= address < END or not 0 <= length <= CHUNK:
        raise error(Reason.BAD_ARGUMENT, f"a read of {length} bytes at {address:#x} makes no sense")
    data = bytearray()
    try:
        while len(data) < length:
            at = address + len(data)
            if at >= END:
                raise error(Reason.NOT_MAPPED, "the address space ends here")
            place = find(at)
            wanted = min(place.length, length - len(data))
            piece = source.read(place.offset, wanted)
            data += piece
            if len(piece) < wanted:
                raise error(Reason.SHORT_FILE, "the dump file ends before the page it should hold")
    except KvmError as e:
        e.metadata |= {"address": f"{min(address + len(data), END - 1):#x}", "readable": str(len(data))}
        raise
    return bytes(data)
