"""The protocol between a worker and an image: files in, protobuf records and typed errors out.

An image knows nothing of RPC, descriptors or policy. It runs in one process and one thread, has no
file system, and reads only through the file descriptors it was given. Everything it reads is hostile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kvmd.v1 import image_pb2, memory_pb2, process_pb2, symbol_pb2

CHUNK = 1 << 20
"""The most bytes of memory in one answer."""


@dataclass(frozen=True, slots=True)
class File:
    """An open file: its descriptor, and the name the client gave, for messages only."""

    fd: int
    name: str


@dataclass(frozen=True, slots=True)
class Files:
    """kvm_open(3)'s three files; ``core`` None is the running kernel."""

    core: File | None
    exec: File | None = None
    swap: tuple[File, ...] = ()
    writable: bool = False


class Image(Protocol):
    """An opened image. Every method raises only :class:`kvmd.errors.KvmError`."""

    def info(self) -> image_pb2.Info:
        """Describe the image."""

    def kernel_name(self) -> str:
        """The name of the namelist: execfile's, or the source of the symbols."""

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace) -> bytes:
        """Read exactly ``length`` (at most :data:`CHUNK`) bytes, or raise.

        The error's metadata hold ``address``, the first byte that can't be read, and ``readable``, how
        many bytes before it can.
        """

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """Look names up, one answer a name; module symbols included."""

    def processes(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """List processes by ascending pid, in bounded time; with ``request.arguments`` each holds its own."""

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """Read a process's arguments or environment, at most ``limit`` bytes (0 = 2 MiB)."""

    def log(self) -> Iterator[image_pb2.LogRecord]:
        """Read the printk buffer, oldest record first."""
