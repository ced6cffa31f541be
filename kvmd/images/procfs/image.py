"""KVM_NO_FILES as the worker sees it (:class:`kvmd.images.base.Image`).

What it shows is what /proc shows to the process that it runs in: the worker's uid and groups are the client's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import ByteOrder, Files
from kvmd.images.procfs import files, system
from kvmd.images.procfs.processes import Processes
from kvmd.v1 import image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2, system_pb2


def _no_files(call: str) -> KvmError:
    return error(Reason.NO_FILES, f"a descriptor opened with KVM_NO_FILES can't be used for {call}", call=call)


class ProcfsImage:
    """The running kernel without its memory.

    :raises KvmError: BAD_ARGUMENT without /proc.
    """

    byte_order: ByteOrder = sys.byteorder

    def __init__(self, given: Files) -> None:
        proc = given.extra.get("proc")
        if proc is None:
            raise error(Reason.BAD_ARGUMENT, "KVM_NO_FILES needs /proc")
        self._proc = proc.fd
        self._processes = Processes(proc.fd)

    def info(self) -> image_pb2.Info:
        """See :class:`~kvmd.images.base.Image`."""
        return system.info(self._proc)

    def kernel_name(self) -> str:
        """Empty: there is no namelist, and NetBSD leaves rubbish there."""
        return ""

    def foreign(self) -> bool:
        """See :class:`~kvmd.images.base.Image`; only FreeBSD's dumps are."""
        return False

    def read_into(self, address: int, into: memoryview, space: memory_pb2.AddressSpace) -> bool:
        """See :class:`~kvmd.images.base.Image`."""
        return False

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace, pid: int = 0) -> NoReturn:
        """Refuse."""
        raise _no_files("kvm_uread" if space == memory_pb2.ADDRESS_SPACE_USER else "kvm_read")

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """Refuse."""
        raise _no_files("kvm_nlist")

    def processes(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """See :class:`~kvmd.images.base.Image`."""
        return self._processes.select(request)

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """See :class:`~kvmd.images.base.Image`."""
        return self._processes.strings(pid, kind, limit)

    def log(self) -> Iterator[image_pb2.LogRecord]:
        """Refuse: /proc/kmsg is no view, reading it takes records away from others."""
        raise _no_files("the kernel's log")

    def write(self, address: int, data: bytes) -> None:
        """Refuse."""
        raise _no_files("kvm_write")

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """Refuse."""
        raise _no_files("kvm_walk_pages")

    def dump_header(self, memory_bytes: int) -> image_pb2.GetDumpHeaderResponse:
        """Refuse."""
        raise _no_files("kvm_dump_wrtheader")

    def load_average(self) -> list[float]:
        """See :class:`~kvmd.images.base.Image`."""
        return system.load_average(self._proc)

    def cpu_times(self) -> list[system_pb2.CpuTimes]:
        """See :class:`~kvmd.images.base.Image`."""
        return system.cpu_times(self._proc)

    def cpus(self) -> system_pb2.GetCpusResponse:
        """See :class:`~kvmd.images.base.Image`; no address is known here."""
        return system.cpus(self._proc)

    def swap_areas(self) -> list[system_pb2.SwapArea]:
        """See :class:`~kvmd.images.base.Image`."""
        return system.swap_areas(self._proc)

    def files(self, pid: int) -> Iterator[system_pb2.OpenFile]:
        """See :class:`~kvmd.images.base.Image`; what the client may not see is absent."""
        return files.select(self._processes, pid)

    def stacks(self, request: stack_pb2.GetStackRequest) -> Iterator[stack_pb2.Stack]:
        """Refuse: /proc/PID/stack is for CAP_SYS_ADMIN alone, which this worker hasn't."""
        raise _no_files("stack traces")
