"""Kallsyms found by scanning memory for its tables: kernels before 6.0, whose VMCOREINFO does not tell where they are.

A table counts if all of it agrees with itself (:mod:`~kvmd.images.linux.scan.names`,
:mod:`~kvmd.images.linux.scan.values`) and with the memory that it describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from drgn import Symbol, SymbolBinding, SymbolIndex, SymbolKind

from kvmd.errors import Reason, error
from kvmd.images.linux.scan.names import DIGITS, names_before, tokens_at
from kvmd.images.linux.scan.search import PLACES, Read, at_most, mapped, search, window
from kvmd.images.linux.scan.tables import Tables, tables_of
from kvmd.images.linux.scan.values import values

BANNER = b"Linux version "
_KERNEL = 1 << 63
_BEFORE, _AFTER = 24 << 20, 12 << 20  # bytes of tables: 1,048,576 symbols have no more
_NEAR = 32 << 10  # a token table and its index
_MOST = 32  # token tables that are looked at: a kernel's image has one


@dataclass(frozen=True, slots=True)
class Symbols:
    """One kernel's symbols, by ascending value.

    :ivar names: each after its type's letter.
    :ivar tables: where they were found; None where the next dump of the build has other bytes.
    :ivar place: an address that is theirs.
    """

    values: list[int]
    names: list[bytes]
    tables: Tables | None = field(default=None, compare=False)
    place: int = field(default=0, compare=False)

    def address(self, name: bytes) -> int | None:
        """The first value of a global symbol, whatever kind it is."""
        wanted = {letter + name for letter in (b"T", b"D", b"R", b"B", b"A", b"W", b"V", b"d", b"t", b"r", b"b")}
        return next((v for v, n in zip(self.values, self.names, strict=True) if n in wanted), None)

    def index(self) -> SymbolIndex:
        """The symbols as drgn's; each ends where the next one begins, and per-CPU ones before the kernel."""
        after = [*self.values[1:], self.values[-1]]
        rows = zip(self.names, self.values, after, strict=True)
        return SymbolIndex([symbol(chr(name[0]), name[1:].decode("ascii"), value, end) for name, value, end in rows])


def symbol(letter: str, name: str, value: int, end: int) -> Symbol:
    """A symbol as drgn's."""
    size = end - value
    binding, kind = _KINDS.get(letter) or (
        SymbolBinding.GLOBAL if letter.isupper() else SymbolBinding.LOCAL,
        SymbolKind.FUNC if letter in "tT" else SymbolKind.OBJECT,
    )
    return Symbol(name, value, size if value >= _KERNEL or end < _KERNEL else 0, binding, kind)


# nm(1)'s letters that are not told by their case.
_KINDS = {
    "u": (SymbolBinding.UNIQUE, SymbolKind.OBJECT),
    **dict.fromkeys("vV", (SymbolBinding.WEAK, SymbolKind.OBJECT)),
    **dict.fromkeys("wW", (SymbolBinding.WEAK, SymbolKind.UNKNOWN)),
}


def candidates(read: Read, digits: Iterable[int], page: int) -> Iterator[Symbols]:
    """Give whatever tables agree with themselves, of those whose token table has its digits at some addresses.

    :raises KvmError: AMBIGUOUS if they are too many to look at.
    """
    for place in at_most(_MOST, (place for place in digits if _is_table(read, place, page)), "symbol tables"):
        start = max(place - _BEFORE, 0) & -page
        yield from parse(window(read, start, place + _AFTER & -page, page), place - start, start)


def _is_table(read: Read, place: int, page: int) -> bool:
    low = max(place - _NEAR, 0) & -page
    return tokens_at(window(read, low, place + _NEAR & -page, page), place - low) is not None


def parse(data: bytes, digits: int, address: int) -> Iterator[Symbols]:
    """Give the tables in a window: one if they are whole, more if they could be read in several ways."""
    tokens = tokens_at(data, digits)
    if tokens is None:
        return
    names = names_before(data, tokens)
    if names is not None:
        for found, words in values(data, address, names):
            yield Symbols(found, names.names, tables_of(address, names, words), address + names.tokens)


def of_kernel(read: Read, stext: int, page: int) -> Symbols | None:
    """The symbols of a kernel whose virtual memory can be read; None if it has no tables.

    :raises KvmError: AMBIGUOUS if different tables could be its own.
    """
    places = (place for _, place in search(read, mapped(read, stext), (DIGITS,), page))
    found = candidates(read, at_most(PLACES, places, "digits in a row"), page)
    return the_one(symbols for symbols in found if describes(symbols, read, stext))


def the_one(found: Iterable[Symbols]) -> Symbols | None:
    """The table that was found; of none None.

    :raises KvmError: AMBIGUOUS if different ones were.
    """
    chosen: Symbols | None = None
    for symbols in found:
        if chosen is not None and symbols != chosen:
            raise error(Reason.AMBIGUOUS, "several symbol tables could be the kernel's; name a vmlinux as execfile")
        chosen = symbols
    return chosen


def describes(symbols: Symbols, read: Read, stext: int | None) -> bool:
    """Whether symbols are those of the memory: the kernel begins where they say, and its banner is where they say."""
    if stext is not None and stext not in (symbols.address(b"_stext"), symbols.address(b"_text")):
        return False
    banner = symbols.address(b"linux_banner")
    if banner is None:  # a kernel whose tables have functions only
        return stext is not None
    return window(read, banner, banner + len(BANNER), 1) == BANNER
