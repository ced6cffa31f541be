"""The index of a kernel build: where in its own symbol table and types a name stands, kept from one dump to the next.

It is made of nothing but those bytes (:func:`make`), and used only beside the very same (``digest``), which are read
from each dump that it is used for. A build id doesn't count: a dump may claim any. It holds positions and no values;
what stands at a position is looked at, and compared with the name. Of what was found by scanning it also says where
that was; docs/adr/0020-kernel-index.md says why that can be believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from drgn import Symbol, SymbolBinding, SymbolIndex, SymbolKind

from kvmd.errors import Reason, error
from kvmd.images.linux.btf import Btf, BtfIndex
from kvmd.images.linux.kallsyms import RawKallsyms, addresses
from kvmd.images.linux.nametable import NameTable
from kvmd.images.linux.nametable import make as table
from kvmd.images.linux.scan import kallsyms as scan
from kvmd.images.linux.scan.names import DIGITS
from kvmd.images.linux.scan.tables import Tables
from kvmd.images.linux.sections import Bytes, pack, unpack

_FORMAT = b"1"  # another one, as soon as a part means something else
_SYMBOLS = "kallsyms."
_STEXT = 0xFFFFFFFF81000000
"""Where ``_stext`` is as an index has it (x86's without KASLR): what was scanned for is told relative to it."""
_MOST_SIZE = 1 << 16  # of a symbol: drgn takes what is further from the next for the last before a hole


class Scanned(NamedTuple):
    """What was found by scanning, and where that is, relative to ``_stext``.

    :ivar span: the bytes of all tables of symbols, and what lies between them, as where ``_stext`` is ``_STEXT``.
    :ivar place: of these.
    :ivar btf: the place of the types.
    """

    span: bytes = b""
    place: int = 0
    btf: int | None = None

    @property
    def parts(self) -> dict[str, Bytes]:
        """All of it, by name."""
        tables: dict[str, Bytes] = {"scan.span": self.span, "scan.place": _place(self.place)} if self.span else {}
        return tables if self.btf is None else {**tables, "btf.place": _place(self.btf)}


def inputs(raw: RawKallsyms | None, btf: bytes, scanned: Scanned | None = None) -> bytes:
    """What an index is made of, in one piece."""
    parts = {_SYMBOLS + name: part for name, part in raw.parts.items()} if raw else {}
    return pack({**parts, **(scanned.parts if scanned else {}), **({"btf": btf} if btf else {})})


def make(given: memoryview) -> bytes:
    """Make an index of :func:`inputs`.

    :raises KvmError: CORRUPT_DATA: there is none of such bytes.
    """
    try:
        parts = unpack(given)
        made = {"format": _FORMAT}
        if "btf" in parts:
            made |= _of_types(bytes(parts["btf"]))
            made |= {"btf.place": _place(_number(parts["btf.place"]))} if "btf.place" in parts else {}
        if "scan.span" in parts:
            made |= _of_scanned(bytes(parts["scan.span"]), _number(parts["scan.place"]))
        tables = [bytes(part) for name, part in parts.items() if name.startswith(_SYMBOLS)]
        if tables:
            offsets, names, tokens, indexes = tables
            raw = RawKallsyms(offsets, names, tokens, indexes)
            made |= {"kallsyms.digest": raw.digest, **_of_symbols("kallsyms", raw)}
    except (ValueError, TypeError, LookupError) as e:
        raise error(Reason.CORRUPT_DATA, f"an index can't be made: {e}") from e
    return pack(made)


def _of_types(btf: bytes) -> dict[str, bytes]:
    parsed = Btf(btf)
    starts = memoryview(parsed.starts).tobytes()  # type: ignore[arg-type] # an array
    names, constants = table(parsed.names()), table(parsed.constants())
    digest = hashlib.sha256(btf).digest()
    return {"btf.digest": digest, "btf.starts": starts, "btf.names": names, "btf.constants": constants}


def _of_symbols(what: str, raw: RawKallsyms) -> dict[str, bytes]:
    places, names = bytearray(), list[tuple[bytes, int]]()
    for number, (at, entry) in enumerate(raw.entries()):
        places += at.to_bytes(4, "little")
        names.append((entry.name, number))
    return {f"{what}.places": bytes(places), f"{what}.names": table(names)}


def _of_scanned(span: bytes, place: int) -> dict[str, bytes]:
    """The span must be nothing but one kernel's tables, found by the same rules as in a dump."""
    for symbols in scan.parse(span, span.find(DIGITS), _STEXT + place):
        tables = symbols.tables
        if tables is None or (tables.start, tables.length) != (_STEXT + place, len(span)):
            continue
        if symbols.address(b"_stext") == _STEXT:
            made = _of_symbols("scan", tables.raw(span))
            return {"scan.digest": tables.digest(span), "scan.where": tables.moved(-_STEXT).packed(), **made}
    raise ValueError("there are no such tables")


@dataclass(frozen=True, slots=True)
class SymbolPlaces:
    """Finds symbols of a kernel whose tables an index is of.

    :ivar raw: the tables.
    :ivar places: where each symbol's name begins.
    :ivar names: the numbers of the symbols of a name.
    :ivar address: of a symbol, by its number.
    :ivar symbol: makes one of its letter, name, address and that of the next.
    """

    raw: RawKallsyms
    places: memoryview
    names: NameTable
    address: Callable[[int], int]
    symbol: Callable[[str, str, int, int], Symbol]

    def numbers(self, name: bytes) -> Iterator[tuple[int, str]]:
        """Find the symbols of a name: their numbers, and letters."""
        for number in self.names.find(name):
            if number >= self.raw.count:
                raise ValueError("a symbol's number")
            entry = self.raw.entry(self.places[number])
            if entry.name == name:
                yield number, entry.letter

    def __call__(self, name: str) -> list[Symbol]:
        """Find the symbols of a name, as drgn has them.

        :raises KvmError: CORRUPT_DATA.
        """
        try:
            found = list(self.numbers(name.encode("utf-8", "surrogateescape")))
            return [self._symbol(name, number, letter) for number, letter in found]
        except (ValueError, IndexError) as e:
            raise error(Reason.CORRUPT_DATA, f"the kernel's symbol table makes no sense: {e}") from e

    def all(self) -> SymbolIndex:
        """Every symbol; what is known of places isn't needed for it.

        :raises KvmError: CORRUPT_DATA.
        """
        try:
            rows = ((number, entry) for number, (_, entry) in enumerate(self.raw.entries()))
            return SymbolIndex([self._symbol(e.name.decode("utf-8", "replace"), n, e.letter) for n, e in rows])
        except (ValueError, IndexError) as e:
            raise error(Reason.CORRUPT_DATA, f"the kernel's symbol table makes no sense: {e}") from e

    def _symbol(self, name: str, number: int, letter: str) -> Symbol:
        start = self.address(number)
        end = self.address(number + 1) if number + 1 < self.raw.count else start
        return self.symbol(letter, name, start, end)


def _told(letter: str, name: str, start: int, end: int) -> Symbol:
    size = end - start if 0 <= end - start < _MOST_SIZE else 0
    return Symbol(name, start, size, *_kind(letter))


def _kind(letter: str) -> tuple[SymbolBinding, SymbolKind]:
    """What nm(1)'s letter means, as drgn takes it."""
    if letter in "vVwW":
        return SymbolBinding.WEAK, SymbolKind.OBJECT if letter in "vV" else SymbolKind.UNKNOWN
    binding = SymbolBinding.GLOBAL if letter.isupper() else SymbolBinding.UNKNOWN
    kind = SymbolKind.FUNC if letter in "tT" else SymbolKind.OBJECT if letter in "bBcCdDrRsSgGnN" else None
    return binding, kind or SymbolKind.UNKNOWN


class Index:
    """An index as it was kept.

    :raises ValueError: it is none.
    """

    def __init__(self, data: memoryview) -> None:
        self._parts = unpack(data)
        if bytes(self._parts.get("format", b"")) != _FORMAT:
            raise ValueError("an index of another format")

    def types(self, btf: bytes) -> BtfIndex | None:
        """What is known of a kernel's BTF; None if that is of other bytes."""
        if not self._fits("btf", hashlib.sha256(btf).digest()):
            return None
        constants = self._parts.get("btf.constants")  # which an index of an earlier version doesn't have
        try:
            starts, names = _words(self._parts["btf.starts"]), NameTable(self._parts["btf.names"])
            return BtfIndex(starts, names, None if constants is None else NameTable(constants))
        except (ValueError, LookupError):  # it makes no sense, which is as good as none
            return None

    def symbols(self, raw: RawKallsyms, stext: int) -> SymbolPlaces | None:
        """Find symbols in a kernel's tables; None if the index is of others.

        :param stext: where ``_stext`` is, from which all addresses follow.
        """
        if not self._fits("kallsyms", raw.digest):
            return None
        return self._places("kallsyms", raw, stext, _told)

    def scanned(self, read: Callable[[int, int], bytes | None], stext: int) -> tuple[Tables, SymbolPlaces] | None:
        """Find symbols in the tables that were scanned for in another dump, and where they are in this one.

        :param read: reads what nobody but the kernel's builder wrote; None where that can't be said.
        """
        try:
            tables = Tables.unpack(self._parts["scan.where"]).moved(stext)
            span = read(tables.start, tables.length)
            if span is None or not self._fits("scan", tables.digest(settled(tables, span, stext))):
                return None
            found = self._places("scan", tables.raw(span), stext, scan.symbol)
        except (ValueError, LookupError):  # there are none, or the index makes no sense
            return None
        return (tables, found) if found else None

    @property
    def btf_place(self) -> int | None:
        """Where the types were that were scanned for, relative to ``_stext``."""
        place = self._parts.get("btf.place")
        return None if place is None or len(place) != 8 else _number(place)

    def _places(
        self, what: str, raw: RawKallsyms, stext: int, symbol: Callable[[str, str, int, int], Symbol]
    ) -> SymbolPlaces | None:
        try:
            places, names = _words(self._parts[f"{what}.places"]), NameTable(self._parts[f"{what}.names"])
            found = SymbolPlaces(raw, places, names, lambda number: 0, symbol)
            number = next((number for number, _ in found.numbers(b"_stext")), None)
        except (ValueError, LookupError):  # it makes no sense, which is as good as none
            return None
        return None if number is None else replace(found, address=addresses(raw, number, stext))

    def _fits(self, what: str, digest: bytes) -> bool:
        return bytes(self._parts.get(f"{what}.digest", b"")) == digest


def settled(tables: Tables, span: bytes, stext: int) -> bytes:
    """The bytes of tables, as they are where ``_stext`` is ``_STEXT``."""
    return tables.rebased(span, _STEXT - stext)


def _place(place: int) -> bytes:
    return place.to_bytes(8, "little", signed=True)


def _number(part: memoryview) -> int:
    if len(part) != 8:
        raise ValueError("a place that is cut")
    return int.from_bytes(part, "little", signed=True)


def _words(data: memoryview) -> memoryview:
    if len(data) % 4:
        raise ValueError("a part that is cut")
    return data.cast("B").cast("I")
