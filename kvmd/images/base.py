"""The protocol between a worker and an image: files in, protobuf records and typed errors out.

An image knows nothing of RPC, descriptors or policy. It runs in one process and one thread, has no
file system, and reads only through the file descriptors it was given. Everything it reads is hostile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from kvmd.v1 import image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2, system_pb2

CHUNK = 1 << 20
"""The most bytes of memory in one answer."""

Unpack = Callable[[int, int, Sequence[bytes], memoryview], None]
"""Unpacks pages: by their codec, the size that each must have, the packed pages, and a buffer for all of them.

Raises ValueError; then anything may be in the buffer.
"""

Progress = Callable[[int, int], None]
"""Is told of much work: how much is done, and of how much, in bytes."""


def unheard(_done: int, _of: int) -> None:
    """Tell nobody of progress."""


class File(NamedTuple):
    """An open file: its descriptor, and the name the client gave, for messages only."""

    fd: int
    name: str


class Kind(StrEnum):
    """What is opened."""

    DUMP = "dump"
    """A crash dump: ``core``."""
    LIVE = "live"
    """The running kernel: ``core`` is /proc/kcore; with ``extra`` as :attr:`Files.extra` says."""
    MEM = "mem"
    """The running kernel through /dev/mem: ``core`` is that; otherwise as LIVE."""
    PROCFS = "procfs"
    """KVM_NO_FILES: no kernel memory at all; ``extra["proc"]`` is a directory descriptor of /proc."""


class Files(NamedTuple):
    """What an image is made of.

    :ivar core: the image itself; None for PROCFS.
    :ivar exec: the file with symbols or DWARF.
    :ivar swap: swap areas' images.
    :ivar writable: whether the running kernel's memory is to be written (by ``extra["mem"]``).
    :ivar extra: what goes with the running kernel, each absent where the kernel has none or the daemon may not open it:
        ``kallsyms`` (/proc/kallsyms), ``vmcoreinfo`` (/sys/kernel/vmcoreinfo), ``iomem`` (/proc/iomem),
        ``btf/vmlinux`` and ``btf/MODULE`` (/sys/kernel/btf/*), ``kcore`` (/proc/kcore beside MEM, for its notes),
        ``mem`` (/dev/mem open for reading and writing, if ``writable``), ``swaps`` (/proc/swaps).
    :ivar progress: is told how far the opening has come, if much of the image must be looked through.
    :ivar dump_offset: where in ``core``, a dump device's image, a NetBSD kernel left its dump; None: ``core`` is a
        dump's file.
    :ivar any_swap: whether to believe swap images that nothing in the dump shows to be of its moment.
    :ivar unpacker: gives an :data:`Unpack` that takes several processors, to who has use for it; None: there is none.
    """

    core: File | None
    exec: File | None = None
    swap: tuple[File, ...] = ()
    writable: bool = False
    kind: Kind = Kind.DUMP
    extra: Mapping[str, File] = MappingProxyType({})
    dump_offset: int | None = None
    any_swap: bool = False
    unpacker: Callable[[], Unpack] | None = None
    progress: Progress = unheard


ByteOrder = Literal["little", "big"]


@runtime_checkable
class Indexed(Protocol):
    """An image that opens faster with the index of its kernel's build."""

    @property
    def build_id(self) -> str:
        """What the image says of its build, in hexadecimal digits; empty: nothing."""

    def use_index(self, data: memoryview) -> None:
        """Take an index, before anything is looked up; one of another build, or none at all, counts for nothing."""

    def index_inputs(self) -> bytes:
        """What an index is made of; nothing if there is one, or if none has been missed.

        :raises KvmError: it can't be read.
        """


class Image(Protocol):
    """An opened image. Every method raises only :class:`kvmd.errors.KvmError`."""

    @property
    def byte_order(self) -> ByteOrder:
        """How the kernel's memory holds numbers."""

    def info(self) -> image_pb2.Info:
        """Describe the image."""

    def kernel_name(self) -> str:
        """The name of the namelist: execfile's, or the source of the symbols."""

    def foreign(self) -> bool:
        """Whether FreeBSD's libkvm would ask for a symbol resolver: a dump of FreeBSD's and of another architecture."""

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace, pid: int = 0) -> bytes:
        """Read exactly ``length`` (at most :data:`CHUNK`) bytes, or raise; ``pid`` counts in the user's space only.

        The error's metadata hold ``address``, the first byte that can't be read, and ``readable``, how
        many bytes before it can.
        """

    def read_into(self, address: int, into: memoryview, space: memory_pb2.AddressSpace) -> bool:
        """Fill a buffer without a copy in between, where there is such a way, and all of it can be read.

        :returns: whether it is filled; if not, :meth:`read` reads it, or says why it can't be read.
        """

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """Look names up, one answer a name; module symbols included."""

    def processes(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """List processes by ascending pid, in bounded time; with ``request.arguments`` each holds its own."""

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """Read a process's arguments or environment, at most ``limit`` bytes (0 = 2 MiB)."""

    def log(self) -> Iterator[image_pb2.LogRecord]:
        """Read the printk buffer, oldest record first."""

    def write(self, address: int, data: bytes) -> None:
        """Write kernel virtual memory of the running kernel, all of ``data`` or raise.

        The error's metadata hold ``written``, how many bytes were. A dump raises WRITE_DEAD.
        """

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """Walk the kernel's page tables from a virtual address on (0: the kernel's half), in ascending order."""

    def dump_header(self, memory_bytes: int) -> image_pb2.GetDumpHeaderResponse:
        """Make the header of a NetBSD dump's file, for so many bytes of memory.

        :raises KvmError: NO_DUMP_HEADER where the device's own was not found; UNSUPPORTED of what is no NetBSD dump.
        """

    def load_average(self) -> list[float]:
        """The load averages over 1, 5 and 15 minutes."""

    def cpu_times(self) -> list[system_pb2.CpuTimes]:
        """The time that CPUs spent: the sum, then each online CPU."""

    def cpus(self) -> system_pb2.GetCpusResponse:
        """The possible CPUs."""

    def swap_areas(self) -> list[system_pb2.SwapArea]:
        """The swap areas, as /proc/swaps lists them."""

    def files(self, pid: int) -> Iterator[system_pb2.OpenFile]:
        """The open files of a process, or of all (``pid`` 0), by ascending pid and fd."""

    def stacks(self, request: stack_pb2.GetStackRequest) -> Iterator[stack_pb2.Stack]:
        """Unwind the stack of a task or CPU, or all by ascending pid; in the latter each stack has its own error."""
