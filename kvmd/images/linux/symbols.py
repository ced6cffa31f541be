"""Names to addresses: execfile's symbols, kallsyms in the dump, its modules' own, VMCOREINFO's few.

nlist(3)'s types: text, data, bss and absolute are told by the symbol's letter where the source has one, and else by the
kernel's section bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple, Protocol

from drgn import Symbol, SymbolBinding, SymbolIndex, SymbolKind

from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import symbol_pb2

N_EXT, N_ABS, N_TEXT, N_DATA, N_BSS = 1, 2, 4, 6, 8
KERNEL = 1 << 63
"""Kernel virtual addresses have the highest bit, but for s390x; smaller values are per-CPU offsets and absolutes."""


class Found(NamedTuple):
    """A symbol: address or per-CPU offset, size in bytes (0 = unknown), nlist's type, source, module."""

    name: str
    value: int
    size: int
    n_type: int
    source: symbol_pb2.SymbolSource
    module: str = ""


_BOUNDS = ("_text", "_etext", "_sinittext", "_einittext", "__bss_start", "_end", "_sdata", "_edata")
_PLACES = (("_text", "_etext", N_TEXT), ("_sinittext", "_einittext", N_TEXT), ("__bss_start", "_end", N_BSS))

Lookup = Callable[[str], Found | None]


class SymbolTable(Protocol):
    """A kernel's symbol table."""

    def __call__(self, name: str) -> Found | None:
        """Look a name of the kernel proper up; of several static ones the global one, else the lowest."""

    def module(self, name: str) -> Found | None:
        """Look a name up among the modules' symbols."""

    def at(self, address: int) -> list[Symbol]:
        """Return the symbol that holds an address, if there is one."""


class Sections:
    """The kernel's section bounds, which tell what a symbol is where its letter does not.

    :param address: the address of a symbol, 0 if there is none.
    """

    def __init__(self, address: Callable[[str], int]) -> None:
        bounds = {name: address(name) for name in _BOUNDS}
        self._places = [(bounds[low], bounds[high], kind) for low, high, kind in _PLACES if bounds[low]]
        # s390x has kernel addresses, per-CPU ones among them, from 0 on.
        self._lowest = min(KERNEL, bounds["_text"] or KERNEL)
        # Some kernels (Debian's 7.2) are linked so that nm(1), and with it kallsyms, calls all data text.
        self._data = range(bounds["_sdata"], bounds["_edata"] if bounds["_sdata"] else 0)

    def n_type(self, address: int, *, code: bool, external: bool) -> int:
        """The type as in nlist(3) of a symbol that is known to be code, or not known to be."""
        if code and address not in self._data:
            return N_TEXT | external
        if address < self._lowest:
            return N_ABS | external
        # Weak symbols of code look like weak ones of data.
        return next((kind for low, high, kind in self._places if low <= address < high), N_DATA) | external


class Kallsyms:
    """The kernel's own symbol table; modules keep theirs elsewhere.

    :param load: has all of it read from memory; asked once, when it is needed.
    :param named: finds the symbols of a name without that.
    :param source: how it was found.
    """

    def __init__(
        self,
        load: Callable[[], SymbolIndex],
        named: Callable[[str], list[Symbol]] | None = None,
        source: symbol_pb2.SymbolSource = symbol_pb2.SYMBOL_SOURCE_KALLSYMS,
    ) -> None:
        self._load = load
        self._named = named or self._search
        self._source = source
        self._sections = Sections(self._address)

    def _address(self, name: str) -> int:
        symbols = self._matches(name)
        return symbols[0].address if symbols else 0

    def _matches(self, name: str) -> list[Symbol]:
        if "\0" in name:  # which no symbol's name holds, and drgn takes none
            return []
        return sorted(self._named(name), key=lambda s: s.address)

    @cached_property
    def _index(self) -> SymbolIndex:
        return self._load()

    def _search(self, name: str) -> list[Symbol]:
        # The program is unused by the index; its type says otherwise.
        found: list[Symbol] = self._index(None, name, None, False)
        return found

    def __call__(self, name: str) -> Found | None:
        """See :class:`SymbolTable`."""
        symbols = self._matches(name)
        if not symbols:
            return None
        symbol = next((s for s in symbols if s.binding is SymbolBinding.GLOBAL), symbols[0])
        external = symbol.binding in (SymbolBinding.GLOBAL, SymbolBinding.WEAK)
        n_type = self._sections.n_type(symbol.address, code=symbol.kind is SymbolKind.FUNC, external=external)
        return Found(name, symbol.address, symbol.size, n_type, self._source)

    def module(self, _name: str) -> Found | None:
        """See :class:`SymbolTable`."""
        return None

    def at(self, address: int) -> list[Symbol]:
        """See :class:`SymbolTable`."""
        found: list[Symbol] = self._index(None, None, address, True)
        return [min((symbol, *self._aliases.get(symbol.address, ())), key=rank) for symbol in found]

    @cached_property
    def _aliases(self) -> dict[int, list[Symbol]]:
        """By address, those that the next one hides: a symbol ends where the next begins."""
        found: dict[int, list[Symbol]] = {}
        for symbol in self._index(None, None, None, False):
            if not symbol.size:
                found.setdefault(symbol.address, []).append(symbol)
        return found


def rank(symbol: Symbol) -> tuple[int, bool, bool, int, str]:
    """Of several symbols that hold an address, the least of these names it, as in the kernel's own traces.

    That is the one that begins last, and of those that begin together the first of kallsyms: Linux scripts/kallsyms.c
    (compare_symbols, 5.10 to 7.2) puts weak ones last, then the linker's marks of where sections begin and end, then
    what begins with more underscores, and leaves the rest in the order of nm(1), by name.
    """
    name, plain = symbol.name, symbol.name.lstrip("_")
    mark = name.startswith(("__start_", "__stop_", "__end_")) or name.endswith(("_start", "_end"))
    weak = symbol.binding is SymbolBinding.WEAK
    return -symbol.address, weak, mark and name.startswith("__"), len(name) - len(plain), name


def vmcoreinfo_lookup(info: VmcoreInfo) -> Lookup:
    """Look names up in VMCOREINFO. Its arrays and tables are data; names of code begin ``_stext``."""
    known = info.symbols()
    known.pop("mem_section", None)  # mostly what that pointer holds, not where it is (VMCOREINFO_SYMBOL_ARRAY)

    def lookup(name: str) -> Found | None:
        if name not in known:
            return None
        kind = N_TEXT if name in ("_stext", "_text", "_etext", "_sinittext", "_einittext") else N_DATA
        return Found(name, known[name], 0, kind | N_EXT, symbol_pb2.SYMBOL_SOURCE_VMCOREINFO)

    return lookup


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
