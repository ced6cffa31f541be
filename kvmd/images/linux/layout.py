"""What every dump format answers about itself, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kvmd.errors import Reason

PAGE = 4096


class Layout(Protocol):
    """Where a dump file keeps physical memory. Addresses are physical, in bytes."""

    @property
    def format(self) -> str:
        """The format's name, such as ``kdump-zstd`` or ``elf``."""

    @property
    def vmcoreinfo(self) -> bytes:
        """The VMCOREINFO text; empty of a dump that was made without."""

    @property
    def notes(self) -> bytes:
        """The ELF notes beside VMCOREINFO, among them CPUs' registers; empty where there are none."""

    @property
    def page_size(self) -> int:
        """The size of a page in bytes."""

    def trouble(self, address: int) -> Reason | None:
        """Why the page that holds ``address`` can't be read; None if the file holds it whole.

        BEYOND_DUMP, EXCLUDED or SHORT_FILE.
        """


class DumpLayout(Layout, Protocol):
    """The same of a dump's file, which can be looked through."""

    def runs(self) -> Iterator[range]:
        """The ranges of physical addresses that the file holds, ascending."""
