"""The index of a kernel build: where in its own symbol table and types a name stands, kept from one dump to the next.

It is made of nothing but those bytes (:func:`make`), and used only beside the very same (``digest``), which are read
from each dump that it is used for. A build id doesn't count: a dump may claim any. It holds positions and no values;
what stands at a position is looked at, and compared with the name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from drgn import Symbol, SymbolBinding, SymbolKind

from kvmd.errors import Reason, error
from kvmd.images.linux.btf import Btf, BtfIndex
from kvmd.images.linux.kallsyms import RawKallsyms, addresses
from kvmd.images.linux.nametable import NameTable
from kvmd.images.linux.nametable import make as table
from kvmd.images.linux.sections import pack, unpack

_FORMAT = b"1"  # another one, as soon as a part means something else
_SYMBOLS = "kallsyms."
_MOST_SIZE = 1 << 16  # of a symbol: drgn takes what is further from the next for the last before a hole


def inputs(raw: RawKallsyms | None, btf: bytes) -> bytes:
    """What an index is made of, in one piece."""
    parts = {_SYMBOLS + name: part for name, part in raw.parts.items()} if raw else {}
    return pack({**parts, "btf": btf})


def make(given: memoryview) -> bytes:
    """Make an index of :func:`inputs`.

    :raises KvmError: CORRUPT_DATA: there is none of such bytes.
    """
    try:
        parts = unpack(given)
        made = {"format": _FORMAT}
        if "btf" in parts:
            made |= _of_types(bytes(parts["btf"]))
        tables = [bytes(part) for name, part in parts.items() if name.startswith(_SYMBOLS)]
        if tables:
            offsets, names, tokens, indexes = tables
            made |= _of_symbols(RawKallsyms(offsets, names, tokens, indexes))
    except (ValueError, TypeError, LookupError) as e:
        raise error(Reason.CORRUPT_DATA, f"an index can't be made: {e}") from e
    return pack(made)


def _of_types(btf: bytes) -> dict[str, bytes]:
    parsed = Btf(btf)
    starts = memoryview(parsed.starts).tobytes()  # type: ignore[arg-type] # an array
    return {"btf.digest": hashlib.sha256(btf).digest(), "btf.starts": starts, "btf.names": table(parsed.names())}


def _of_symbols(raw: RawKallsyms) -> dict[str, bytes]:
    places, names, at = bytearray(), list[tuple[bytes, int]](), 0
    for number in range(raw.count):
        places += at.to_bytes(4, "little")
        entry = raw.entry(at)
        names.append((entry.name, number))
        at = entry.end
    return {"kallsyms.digest": raw.digest, "kallsyms.places": bytes(places), "kallsyms.names": table(names)}


@dataclass(frozen=True, slots=True)
class SymbolPlaces:
    """Finds symbols of a kernel whose tables an index is of.

    :ivar raw: the tables.
    :ivar places: where each symbol's name begins.
    :ivar names: the numbers of the symbols of a name.
    :ivar address: of a symbol, by its number.
    """

    raw: RawKallsyms
    places: memoryview
    names: NameTable
    address: Callable[[int], int]

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

    def _symbol(self, name: str, number: int, letter: str) -> Symbol:
        start = self.address(number)
        end = self.address(number + 1) if number + 1 < self.raw.count else start
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
        return BtfIndex(_words(self._parts["btf.starts"]), NameTable(self._parts["btf.names"]))

    def symbols(self, raw: RawKallsyms, stext: int) -> SymbolPlaces | None:
        """Find symbols in a kernel's tables; None if the index is of others.

        :param stext: where ``_stext`` is, from which all addresses follow.
        """
        if not self._fits("kallsyms", raw.digest):
            return None
        places, names = _words(self._parts["kallsyms.places"]), NameTable(self._parts["kallsyms.names"])
        found = SymbolPlaces(raw, places, names, lambda number: 0)
        for number, _ in found.numbers(b"_stext"):
            return replace(found, address=addresses(raw, number, stext))
        return None

    def _fits(self, what: str, digest: bytes) -> bool:
        return bytes(self._parts.get(f"{what}.digest", b"")) == digest


def _words(data: memoryview) -> memoryview:
    if len(data) % 4:
        raise ValueError("a part that is cut")
    return data.cast("B").cast("I")
