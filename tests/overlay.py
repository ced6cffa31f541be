"""A kernel some of whose memory a test has overwritten."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from kvmd.errors import KvmError
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.order import LITTLE, number, words


def reads(read: Callable[[int, int], bytes], **others: Any) -> Any:
    """What stands in for a little-endian kernel's memory.

    :param read: reads kernel memory.
    """
    return SimpleNamespace(
        kernel=read,
        order=LITTLE,
        number=lambda address, size=8: number(read(address, size), LITTLE),
        words=lambda address, count: words(read(address, 8 * count), LITTLE),
        **others,
    )


class Overlay:
    """The kernel of a dump with other bytes at some addresses, which need not be mapped.

    Only reads by ``kernel.memory.kernel`` see them, not those of drgn's own.
    """

    def __init__(self, kernel: Kernel, patches: dict[int, bytes] | None = None) -> None:
        self._kernel = kernel
        self.patches = dict(patches or {})
        self.reads = 0
        memory = kernel.memory
        self.memory: Any = reads(
            self._read, tables=memory.tables, physical=memory.physical, translate=memory.translate
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)

    def put(self, address: int, value: int, size: int = 8) -> None:
        self.patches[address] = value.to_bytes(size, "little")

    def _read(self, address: int, length: int) -> bytes:
        self.reads += 1
        inside = [(a, d) for a, d in self.patches.items() if a < address + length and address < a + len(d)]
        try:
            data = bytearray(self._kernel.memory.kernel(address, length))
        except KvmError:
            if not any(a <= address and address + length <= a + len(d) for a, d in inside):
                raise
            data = bytearray(length)
        for at, patch in inside:
            low, high = max(at, address), min(at + len(patch), address + length)
            data[low - address : high - address] = patch[low - at : high - at]
        return bytes(data)
