"""Arguments and environments, read from the process's own pages.

Source: Linux fs/proc/base.c: the vectors lie between mm->arg_start and arg_end, env_start and env_end, NUL after each.
"""

from __future__ import annotations

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.processes import Processes
from kvmd.images.linux.userpages import UserPages
from kvmd.v1 import error_pb2, process_pb2

MAX_BYTES = 2 << 20
_KINDS = {
    process_pb2.STRINGS_KIND_ARGUMENTS: ("arg_start", "arg_end"),
    process_pb2.STRINGS_KIND_ENVIRONMENT: ("env_start", "env_end"),
}


class StringReader:
    """Reads strings of processes of one kernel.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, processes: Processes, pages: UserPages) -> None:
        self._pages = pages
        self._processes = processes
        names = ("pgd", *(name for pair in _KINDS.values() for name in pair))
        self._mm = Fields(kernel.prog, kernel.memory.kernel, "struct mm_struct", {name: (name,) for name in names})

    def read(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """Read at most ``limit`` bytes (0 = 2 MiB); what lies before a fault is kept, the fault is in ``error``.

        :raises KvmError: NO_SUCH_PROCESS, NO_USER_MEMORY, BAD_ARGUMENT, CORRUPT_DATA, or a fault of the kernel's own
            structures.
        """
        if kind not in _KINDS:
            raise error(Reason.BAD_ARGUMENT, f"{kind} is no kind of strings")
        return self._read(pid, kind, limit, self._processes.memory(pid))

    def arguments(self, process: process_pb2.Process) -> process_pb2.Strings:
        """Read the arguments of a process that was just listed; otherwise as :meth:`read`."""
        address = self._processes.memory(process.pid, process.task_address)
        return self._read(process.pid, process_pb2.STRINGS_KIND_ARGUMENTS, 0, address)

    def _read(self, pid: int, kind: process_pb2.StringsKind, limit: int, address: int) -> process_pb2.Strings:
        mm = self._mm(address)
        start, end, root = (mm[name] for name in (*_KINDS[kind], "pgd"))
        if not isinstance(start, int) or not isinstance(end, int) or not isinstance(root, int) or end < start:
            raise error(Reason.CORRUPT_DATA, f"the bounds of process {pid}'s strings make no sense", pid=pid)
        length = min(end - start, limit or MAX_BYTES, MAX_BYTES)
        strings = process_pb2.Strings()
        data = bytearray()
        try:
            for piece in self._pages.read(address, root, start, length):
                data += piece
        except KvmError as e:
            words = {**e.metadata, "readable": str(len(data)), "pid": str(pid)}
            strings.error.CopyFrom(error_pb2.Error(reason=e.reason.value, message=e.message, metadata=words))
        strings.values.extend(_split(bytes(data)))
        return strings


def _split(data: bytes) -> list[bytes]:
    """Split at NULs; a last string that was cut off is kept."""
    values = data.split(b"\0")
    return values[:-1] if values[-1] == b"" else values
