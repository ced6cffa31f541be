"""Memory of processes, by their own virtual addresses."""

from __future__ import annotations

from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.processes import Processes
from kvmd.images.linux.userpages import UserPages


class UserMemory:
    """Reads of the memory of one kernel's processes.

    :raises KvmError: NO_TYPES, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, processes: Processes, pages: UserPages) -> None:
        self._memory, self._pages = kernel.memory, pages
        self._processes = processes
        self._mm = Fields(kernel.prog, kernel.memory.kernel, "struct mm_struct", {"pgd": ("pgd",)})

    def read(self, pid: int, address: int, length: int) -> bytes:
        """Read exactly ``length`` bytes (at most a chunk) of a process or thread, through its page tables.

        What was swapped out is read from wherever it is. What a process mapped but never touched, and what it mapped
        from a file and did not read yet, is in no page of its own and so NOT_MAPPED.

        :raises KvmError: NO_SUCH_PROCESS; NO_USER_MEMORY for kernel threads and zombies; BAD_ARGUMENT; UNSUPPORTED
            where page tables of the architecture are not known; NOT_MAPPED, NOT_PRESENT (swapped out to what is not
            given), EXCLUDED, BEYOND_DUMP, SHORT_FILE or CORRUPT_PAGE, with metadata ``address`` (the first byte that
            can't be read), ``readable`` (how many before it can) and ``pid``.
        """
        if not 0 <= address < 1 << 64 or not 0 <= length <= CHUNK:
            raise error(Reason.BAD_ARGUMENT, f"a read of {length} bytes at {address:#x} makes no sense")
        mm = self._processes.memory(pid)
        root: Any = self._mm(mm)["pgd"]
        data, end = bytearray(), self._end()
        address = self._untagged(address)
        try:
            for piece in self._pages.read(mm, root, address, max(min(length, end - address), 0)):
                data += piece
            if len(data) < length:
                # The upper half of the same tables is the kernel's, which is no memory of the process.
                raise error(Reason.NOT_MAPPED, "the process's address space ends here", address=address + len(data))
        except KvmError as e:
            e.metadata |= {"readable": str(len(data)), "pid": str(pid)}
            raise
        return bytes(data)

    def _untagged(self, address: int) -> int:
        """The address without what arm64 programs keep in its highest byte."""
        plain = self._memory.tables.paging.canonical(address) if self._memory.tables else None
        return address if plain is None else plain

    def _end(self) -> int:
        """Where the half of the address space ends that is the process's."""
        return self._memory.tables.paging.user_end if self._memory.tables else 1 << 64
