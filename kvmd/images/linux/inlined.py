"""The functions that the compiler put into others, which only DWARF tells."""

from __future__ import annotations

from kvmd.errors import KvmError
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.kernel import Kernel

_MAX_INLINE = 64


class Inlined:
    """Those of one kernel; none without an execfile that has DWARF."""

    def __init__(self, kernel: Kernel) -> None:
        self._prog = kernel.prog
        self._known: dict[int, list[str]] | None = {} if kernel.types_source == "dwarf" else None

    def at(self, address: int) -> list[str]:
        """The functions that were put into the one at an address of the kernel proper, the innermost first."""
        if self._known is None:
            return []
        if address not in self._known:
            self._known[address] = self._find(address)
        return self._known[address]

    def _find(self, address: int) -> list[str]:
        try:
            with guarded("the execfile's DWARF"):
                frames = list(self._prog.stack_trace_from_pcs([address]))[:_MAX_INLINE]
        except KvmError:  # the frame itself has its name from the symbol table
            return []
        return [frame.name or "" for frame in frames if frame.is_inline]
