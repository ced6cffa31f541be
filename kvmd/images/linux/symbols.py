"""Names to addresses: execfile's symbols, kallsyms in the dump, its modules' own, VMCOREINFO's few.

nlist(3)'s types: text, data, bss and absolute are told by the symbol's letter where the source has one, and else by the
kernel's section bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from drgn import Symbol, SymbolBinding, SymbolIndex, SymbolKind

from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import symbol_pb2

N_EXT, N_ABS, N_TEXT, N_DATA, N_BSS = 1, 2, 4, 6, 8
KERNEL = 1 << 63
"""Kernel virtual addresses have the highest bit; smaller values are per-CPU offsets and absolutes."""


@dataclass(frozen=True, slots=True)
class Found:
    """A symbol: address or per-CPU offset, size in bytes (0 = unknown), nlist's type, source, module."""

    name: str
    value: int
    size: int
    n_type: int
    source: symbol_pb2.SymbolSource
    module: str = ""


_BOUNDS = ("_text", "_etext", "_sinittext", "_einittext", "__bss_start", "_end")

Lookup = Callable[[str], Found | None]


class Kallsyms:
    """The kernel's own symbol table, as drgn loaded it."""

    def __init__(self, index: SymbolIndex) -> None:
        self._index = index
        self._bounds = {name: self._address(name) for name in _BOUNDS}

    def _address(self, name: str) -> int:
        symbols = self._matches(name)
        return symbols[0].address if symbols else 0

    def _matches(self, name: str) -> list[Symbol]:
        # The program is unused by the index; its type says otherwise.
        return sorted(self._index(None, name, None, False), key=lambda s: s.address)

    def __call__(self, name: str) -> Found | None:
        """Look a name up; of several static ones the global one, else the lowest."""
        symbols = self._matches(name)
        if not symbols:
            return None
        symbol = next((s for s in symbols if s.binding is SymbolBinding.GLOBAL), symbols[0])
        source = symbol_pb2.SYMBOL_SOURCE_KALLSYMS
        return Found(name, symbol.address, symbol.size, self._n_type(symbol), source)

    def at(self, address: int) -> list[Symbol]:
        """Return the symbol that holds an address, if there is one."""
        found: list[Symbol] = self._index(None, None, address, True)
        return found

    def _n_type(self, symbol: Symbol) -> int:
        external = N_EXT if symbol.binding in (SymbolBinding.GLOBAL, SymbolBinding.WEAK) else 0
        if symbol.kind is SymbolKind.FUNC:
            return N_TEXT | external
        if symbol.address < KERNEL:
            return N_ABS | external
        # Weak symbols of code look like weak ones of data.
        places = (("_text", "_etext", N_TEXT), ("_sinittext", "_einittext", N_TEXT), ("__bss_start", "_end", N_BSS))
        found = (kind for low, high, kind in places if self._inside(symbol.address, low, high))
        return next(found, N_DATA) | external

    def _inside(self, address: int, low: str, high: str) -> bool:
        return bool(self._bounds[low]) and self._bounds[low] <= address < self._bounds[high]


def vmcoreinfo_lookup(info: VmcoreInfo) -> Lookup:
    """Look names up in VMCOREINFO. Its arrays and tables are data; names of code begin ``_stext``."""
    known = info.symbols()

    def lookup(name: str) -> Found | None:
        if name not in known:
            return None
        kind = N_TEXT if name in ("_stext", "_text", "_etext", "_sinittext", "_einittext") else N_DATA
        return Found(name, known[name], 0, kind | N_EXT, symbol_pb2.SYMBOL_SOURCE_VMCOREINFO)

    return lookup


def table_lookup(table: Mapping[str, Found]) -> Lookup:
    """Look names up in a table."""
    return table.get


def as_drgn(found: Found) -> Symbol:
    """The symbol as drgn's."""
    kind = SymbolKind.FUNC if found.n_type & ~N_EXT == N_TEXT else SymbolKind.OBJECT
    binding = SymbolBinding.GLOBAL if found.n_type & N_EXT else SymbolBinding.LOCAL
    return Symbol(found.name, found.value, found.size, binding, kind)


def to_wire(name: str, found: Found | None) -> symbol_pb2.Symbol:
    """The answer to one name of a request."""
    if found is None:
        return symbol_pb2.Symbol(name=name)
    return symbol_pb2.Symbol(
        name=name,
        found=True,
        value=found.value,
        n_type=found.n_type,
        size=found.size,
        source=found.source,
        module=found.module,
    )
