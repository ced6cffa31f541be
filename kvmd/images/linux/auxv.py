"""What the kernel knows of pages of processes' own: witnesses of which moment a swap image is.

An auxiliary vector is written twice when a program starts: to the process's stack, between its pointers and its
strings, and to mm_struct.saved_auxv, which is in every dump. Where AT_RANDOM and the vDSO lie is drawn by lot each
time.

Source: Linux fs/binfmt_elf.c (create_elf_tables: start_stack, then the vectors, below arg_start), uapi/linux/auxvec.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from kvmd.errors import KvmError
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import Order
from kvmd.images.linux.swap.chain import Chain
from kvmd.images.linux.tasks import Tasks
from kvmd.images.linux.userpages import UserPages

_MOST_TASKS = 1 << 14
_MOST_PAGES = 64
_AT_NULL, _AT_RANDOM, _AT_SYSINFO_EHDR = 0, 25, 33
_PAIR = "QQ"
_MEMBERS = ("pgd", "start_stack", "arg_start", "saved_auxv")


class AuxVectors:
    """The auxiliary vectors of one dump's processes.

    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA.
    """

    def __init__(self, kernel: Kernel, tasks: Tasks, pages: UserPages, chain: Chain) -> None:
        read, page = kernel.memory.kernel, kernel.dump.layout.page_size
        self._tasks, self._pages, self._chain, self._page = tasks, pages, chain, page
        self._order = kernel.memory.order
        self._task = Fields(kernel.prog, read, "struct task_struct", {"mm": ("mm",)})
        self._mm = Fields(kernel.prog, read, "struct mm_struct", {name: (name,) for name in _MEMBERS})

    def witnesses(self) -> Iterator[tuple[int, bool]]:
        """Give the number of a swap area from whose image a vector was read, and whether it is the kernel's.

        A vector that can't be read says nothing. A process may have changed its own, so that one witness against an
        image proves nothing; what agrees can't be made up.
        """
        try:
            for task in islice(self._tasks.walk(), _MOST_TASKS):
                address: Any = self._task(task)["mm"]
                if address:
                    yield from self._of(address)
        except KvmError:  # so far the list of tasks could be followed
            return

    def _of(self, address: int) -> Iterator[tuple[int, bool]]:
        try:
            mm: Any = self._mm(address)
            tokens, low = _tokens(mm["saved_auxv"], self._order), mm["start_stack"] & -self._page
            count = -(-(mm["arg_start"] - low) // self._page)
            if not tokens or not 0 < count <= _MOST_PAGES:
                return
            slots = self._pages.slots(mm["pgd"], low, count)
            stored = {i: slot[0] for i, slot in enumerate(slots) if slot and self._chain.stored(slot)}
        except KvmError:
            return
        if stored:
            yield from self._compared(tokens, stored, [self._read(address, mm["pgd"], low, i) for i in range(count)])

    def _compared(
        self, tokens: list[bytes], stored: dict[int, int], pages: list[bytes | None]
    ) -> Iterator[tuple[int, bool]]:
        data = b"".join(page or bytes(self._page) for page in pages)
        places = [data.find(token) for token in tokens]
        if min(places) >= 0:
            for number in {stored[at // self._page] for at in places if at // self._page in stored}:
                yield number, True
        elif None not in pages and len(areas := set(stored.values())) == 1:
            yield areas.pop(), False

    def _read(self, mm: int, root: int, low: int, index: int) -> bytes | None:
        try:
            return b"".join(self._pages.read(mm, root, low + index * self._page, self._page))
        except KvmError:
            return None


def _tokens(saved: bytes, order: Order) -> list[bytes]:
    """The entries that no two programs have in common; none for a program of 32 bits, whose vector is another."""
    found: list[bytes] = []
    pair = struct.Struct(order + _PAIR)
    for kind, value in pair.iter_unpack(saved[: len(saved) & -pair.size]):
        if kind == _AT_NULL:
            break
        if kind in (_AT_RANDOM, _AT_SYSINFO_EHDR) and value:
            found.append(pair.pack(kind, value))
    return found
