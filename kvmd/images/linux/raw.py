"""Raw physical memory from address 0 on, as ``pmemsave`` of QEMU's monitor and ``dd`` write it: nothing but bytes.

Nothing tells that a file is one. It counts as one if it could be, no other format wants it, and a kernel is in it.
"""

from __future__ import annotations

from kvmd.images.linux.layout import PAGE
from kvmd.images.linux.segments import Segments
from kvmd.images.linux.source import DumpSource

_LEAST = 16 << 20  # bytes, that a kernel of 64 bits fits in


def is_raw(size: int) -> bool:
    """Whether a file of a size could be one: whole pages, and room for a kernel."""
    return size >= _LEAST and size % PAGE == 0


class RawLayout(Segments):
    """A raw image."""

    format = "raw"
    vmcoreinfo = notes = b""

    def __init__(self, source: DumpSource) -> None:
        super().__init__(source, [(0, source.size, 0)])
