"""A dump of a kernel with all symbols, of which those of data are withheld: what is found then, its own table proves.

``PYTHONPATH=tests python tests/withheld.py DUMP...`` compares, a line for each dump.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drgn import Symbol

from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.objects.table import OBJECTS
from kvmd.images.linux.symbols import N_EXT, N_TEXT, Found, SymbolTable
from kvmd.images.registry import open_image

NAMES = (*OBJECTS, "__per_cpu_offset", "runqueues", "kernel_cpustat", "current_task", "pcpu_hot", "tick_cpu_sched")
BOUNDS = ("_stext", "_etext", "_sinittext", "_einittext")  # which such a table has, too
Answer = int | str | None
"""An address, why there is none, or that there is none."""


class Functions:
    """The functions of a symbol table."""

    def __init__(self, table: SymbolTable) -> None:
        self._table = table

    def __call__(self, name: str) -> Found | None:
        found = self._table(name)
        return found if found and (found.n_type & ~N_EXT == N_TEXT or name in BOUNDS) else None

    def module(self, _name: str) -> Found | None:
        return None

    def at(self, address: int) -> list[Symbol]:
        return self._table.at(address)


@contextmanager
def _opened(path: Path) -> Iterator[Kernel]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        image = open_image(Files(File(fd, path.name)))
        assert isinstance(image, LinuxImage)
        yield image.kernel
    finally:
        os.close(fd)


@contextmanager
def withheld(path: Path) -> Iterator[tuple[Kernel, SymbolTable]]:
    """The kernel without its data symbols, and its whole table."""
    with _opened(path) as whole, _opened(path) as kernel:
        table = whole._kallsyms
        assert table is not None
        kernel.__dict__["_kallsyms"] = Functions(table)
        yield kernel, table


def answer(kernel: Kernel, name: str) -> Answer:
    """Where a kernel has an object."""
    try:
        found = kernel.builtin(name)
    except KvmError as e:
        return e.reason.name
    return found.value if found else None


def compare(path: Path) -> tuple[str, dict[str, tuple[Answer, int | None]]]:
    """The kernel's release; and for each object what was found, and what its table says."""
    with withheld(path) as (kernel, table):
        told = {name: table(name) for name in NAMES}
        return kernel.info.release, {
            name: (answer(kernel, name), found.value if found else None) for name, found in told.items()
        }


if __name__ == "__main__":
    for dump in sys.argv[1:]:
        release, rows = compare(Path(dump))
        there = {name: row for name, row in rows.items() if row[1] is not None}
        wrong = {name: row for name, row in rows.items() if isinstance(row[0], int) and row[0] != row[1]}
        lacking = [name for name, row in there.items() if not isinstance(row[0], int)]
        right = len(there) - len(wrong) - len(lacking)
        print(f"{release}: {right} of {len(there)} found, wrong: {wrong}, not found: {lacking}")  # noqa: T201
