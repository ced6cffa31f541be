"""BTF, the kernel's description of its own types, parsed from hostile bytes. Pure.

Source: Documentation/bpf/btf.rst, Linux 6.12 (version 1, kinds 1 to 19). The magic number tells the byte order. All
ids, string offsets and counts are checked where they are used; the index holds one word a type and is made in one pass,
or was made before (:mod:`kvmd.images.linux.index`). A module's BTF is split: its ids and string offsets go on where
those of its base, the kernel's, end (kernel/bpf/btf.c, btf_parse_module).
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.nametable import NameTable
from kvmd.images.linux.order import BIG, LITTLE, NATIVE, Order

MAGIC = 0xEB9F
_BIG_MAGIC = struct.pack(">H", MAGIC)
MAX_SIZE = 256 << 20
_SEARCHES = 64  # for so many names the strings are searched, which takes half a millisecond; then all are indexed


class Kind(IntEnum):
    """BTF_KIND_*."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


# Words after the three common ones: (fixed, for each of vlen).
_EXTRA = {
    Kind.INT: (1, 0),
    Kind.ARRAY: (3, 0),
    Kind.STRUCT: (0, 3),
    Kind.UNION: (0, 3),
    Kind.ENUM: (0, 2),
    Kind.FUNC_PROTO: (0, 2),
    Kind.VAR: (1, 0),
    Kind.DATASEC: (0, 3),
    Kind.DECL_TAG: (1, 0),
    Kind.ENUM64: (0, 3),
}
_ENUMERATIONS = (Kind.ENUM, Kind.ENUM64)
_NAMED = {
    *(Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.TYPEDEF),
    *(Kind.FUNC, Kind.VAR, Kind.FLOAT, Kind.ENUM64),
}


_FIXED, _EACH = ([_EXTRA.get(kind, (0, 0))[n] for kind in range(32)] for n in (0, 1))  # type: ignore[call-overload]
_IS_NAMED = [kind in _NAMED for kind in range(32)]


def _words(data: bytes, order: Order) -> Sequence[int]:
    if order == NATIVE:
        return memoryview(data).cast("I")
    swapped = array("I", data)
    swapped.byteswap()
    return swapped


def _corrupt(message: str) -> KvmError:
    return error(Reason.CORRUPT_DATA, f"the kernel's BTF makes no sense: {message}")


class Record(NamedTuple):
    """A type as it stands. ``value`` is its size in bytes or the id it refers to, by kind.

    :ivar words: the section that it stands in.
    :ivar at: the word there that follows the common three.
    """

    id: int
    kind: Kind
    name: str
    vlen: int
    flag: bool
    value: int
    words: Sequence[int]
    at: int


class BtfIndex(NamedTuple):
    """What was found out before about the same bytes.

    :ivar starts: of each type the word that it begins at.
    :ivar names: the types of a name.
    :ivar constants: the enumerations of an enumerator's name; None if that wasn't found out.
    """

    starts: Sequence[int]
    names: NameTable
    constants: NameTable | None


class Member(NamedTuple):
    """A member; ``bits`` is the width of a bit field, else 0; ``offset`` is in bits."""

    name: str
    type: int
    offset: int
    bits: int


class Btf:
    """One BTF blob.

    :param base: what a module's BTF goes on from.
    :param index: what is known of this very blob.
    :raises KvmError: CORRUPT_DATA here and from every method, and nothing else.
    """

    def __init__(self, data: bytes, base: Btf | None = None, index: BtfIndex | None = None) -> None:
        self._base = base
        self._known = index
        self._first_id = len(base) if base else 0
        self._first_offset = base.string_end if base else 0
        if len(data) < 24 or len(data) > MAX_SIZE:
            raise _corrupt("its size")
        self._order = BIG if data[:2] == _BIG_MAGIC else LITTLE
        head = struct.unpack_from(self._order + "HBBIIIII", data)
        magic, version, _, length, type_off, type_len, str_off, str_len = head
        if magic != MAGIC or version != 1 or length < 24:
            raise _corrupt("its header")
        types, strings = length + type_off, length + str_off
        if types + type_len > len(data) or strings + str_len > len(data) or type_len % 4:
            raise _corrupt("its sections")
        self._section = data[types : types + type_len]
        self._words: Sequence[int] = _words(self._section, self._order)
        self._strings = data[strings : strings + str_len]
        self._searches = 0
        if self._strings[-1:] != b"\0" and not (base and not str_len):
            raise _corrupt("its strings")
        if not base and self._strings[0]:
            raise _corrupt("its strings")
        self._starts: Sequence[int] = index.starts if index else self._walk()

    def _walk(self) -> Sequence[int]:
        """Find where each type begins."""
        words, count = self._words, len(self._words)
        starts = array("I", [] if self._base else [0])
        at = 0
        while at + 3 <= count:
            info = words[at + 1]
            starts.append(at)
            kind = info >> 24 & 31
            at += 3 + _FIXED[kind] + _EACH[kind] * (info & 0xFFFF)
        if at != count:
            raise _corrupt("the last type")
        return starts

    @cached_property
    def _names(self) -> dict[int, int]:
        """The first type of each name and kind."""
        words, first, names = self._words, self._first_id, dict[int, int]()
        for number, at in enumerate(self._starts, first):
            if number:  # void, which has no words, is no type of a name
                kind = words[at + 1] >> 24 & 31
                if _IS_NAMED[kind] and words[at]:
                    names.setdefault(words[at] << 5 | kind, number)
        return names

    def __len__(self) -> int:
        """One more than the highest type id."""
        return self._first_id + len(self._starts)

    @property
    def string_end(self) -> int:
        """One more than the highest string offset."""
        return self._first_offset + len(self._strings)

    def string(self, offset: int) -> str:
        """Return the string at an offset, the base's or this one's."""
        if self._base and offset < self._first_offset:
            return self._base.string(offset)
        at = offset - self._first_offset
        if at >= len(self._strings):
            raise _corrupt("a string offset")
        return self._strings[at : self._strings.index(b"\0", at)].decode("utf-8", "replace")

    @cached_property
    def _string_offsets(self) -> dict[bytes, int]:
        strings = self._strings.split(b"\0")[:-1]
        offsets = list(accumulate((len(s) + 1 for s in strings), initial=self._first_offset))
        return dict(zip(reversed(strings), reversed(offsets[:-1]), strict=True))

    def string_offsets(self, name: bytes) -> Iterator[int]:
        """Give the offsets at which a string stands, the base's first."""
        if self._base:
            yield from self._base.string_offsets(name)
        if self._searches >= _SEARCHES:
            if name in self._string_offsets:
                yield self._string_offsets[name]
        elif b"\0" not in name:
            self._searches += 1
            yield from self._search(name + b"\0")

    def _search(self, text: bytes) -> Iterator[int]:
        if self._base and self._strings.startswith(text):
            yield self._first_offset
        at = -1
        while (at := self._strings.find(b"\0" + text, at + 1)) >= 0:
            yield self._first_offset + at + 1

    def record(self, type_id: int) -> Record:
        """Return a type by its id; 0 is void."""
        if type_id == 0:
            return Record(0, Kind.VOID, "", 0, False, 0, (), 0)
        if self._base and type_id < self._first_id:
            return self._base.record(type_id)
        if not 0 < type_id < len(self):
            raise _corrupt(f"type id {type_id}")
        at = self._starts[type_id - self._first_id]
        if at + 3 > len(self._words):  # as an index may say that is none of this blob's
            raise _corrupt(f"type id {type_id}")
        name, info, value = self._words[at : at + 3]
        try:
            kind = Kind(info >> 24 & 31)
        except ValueError:
            raise _corrupt(f"kind {info >> 24 & 31}") from None
        if at + 3 + _FIXED[kind] + _EACH[kind] * (info & 0xFFFF) > len(self._words):
            raise _corrupt(f"type id {type_id}")
        return Record(type_id, kind, self.string(name), info & 0xFFFF, bool(info >> 31), value, self._words, at + 3)

    def find(self, name: str, *kinds: Kind) -> int | None:
        """Return the id of the first type of a name among kinds, or None; the base's come last."""
        if self._known:
            return self._find_known(self._known.names, name, kinds)
        for offset in self.string_offsets(name.encode("utf-8", "replace")):
            found = (self._names.get(offset << 5 | kind) for kind in kinds)
            if type_id := next(filter(None, found), None):
                return type_id
        return self._base.find(name, *kinds) if self._base else None

    def _find_known(self, table: NameTable, name: str, kinds: tuple[Kind, ...]) -> int | None:
        ids = (number for number in table.find(name.encode("utf-8", "replace")) if number)
        found = [record for record in map(self.record, ids) if record.name == name]
        return next((record.id for kind in kinds for record in found if record.kind is kind), None)

    def names(self) -> Iterator[tuple[bytes, int]]:
        """Give every name of a type of this blob's, and its id; for an index."""
        for number, at in enumerate(self._starts, self._first_id):
            if number and _IS_NAMED[self._words[at + 1] >> 24 & 31] and self._words[at]:
                yield self.string(self._words[at]).encode("utf-8", "replace"), number

    def functions(self) -> Sequence[int]:
        """The ids of this blob's functions, all of which the kernel's symbol table may name."""
        words = self._words
        return [n for n, at in enumerate(self._starts, self._first_id) if n and words[at + 1] >> 24 & 31 == Kind.FUNC]

    @property
    def starts(self) -> Sequence[int]:
        """Where each type begins; for an index."""
        return self._starts

    def word(self, record: Record, index: int = 0) -> int:
        """Return a word after the common three: INT's encoding, ARRAY's three, VAR's linkage."""
        return record.words[record.at + index]

    def members(self, record: Record) -> Iterator[Member]:
        """Walk the members of a STRUCT or UNION."""
        for at in range(record.at, record.at + 3 * record.vlen, 3):
            name, type_id, offset = record.words[at : at + 3]
            bits = offset >> 24 if record.flag else 0
            yield Member(self.string(name), type_id, offset & 0xFFFFFF if record.flag else offset, bits)

    def enumerators(self, record: Record) -> Iterator[tuple[str, int]]:
        """Walk the (name, value) of an ENUM or ENUM64, signed where the flag says so."""
        wide = record.kind is Kind.ENUM64
        step, bits = (3, 64) if wide else (2, 32)
        for at in range(record.at, record.at + step * record.vlen, step):
            value = record.words[at + 1] | (record.words[at + 2] << 32 if wide else 0)
            if record.flag and value >> (bits - 1):
                value -= 1 << bits
            yield self.string(record.words[at]), value

    def find_section(self, name: str) -> Record | None:
        """Return the first DATASEC of a name, a section's variables."""
        for type_id, start in enumerate(self._starts, self._first_id):
            if type_id and self._words[start + 1] >> 24 & 31 == Kind.DATASEC:
                record = self.record(type_id)
                if record.name == name:
                    return record
        return None

    def variables(self, section: Record) -> Iterator[tuple[int, int, int]]:
        """Walk the (id of its VAR, offset, size) of a DATASEC's variables."""
        for at in range(section.at, section.at + 3 * section.vlen, 3):
            type_id, offset, size = section.words[at : at + 3]
            yield type_id, offset, size

    def parameters(self, record: Record) -> Iterator[tuple[str, int]]:
        """Walk the (name, type id) of a FUNC_PROTO; a variadic one ends with ("", 0)."""
        for at in range(record.at, record.at + 2 * record.vlen, 2):
            yield self.string(record.words[at]), record.words[at + 1]

    def constant(self, name: str) -> int | None:
        """Return the id of the first enumeration that has an enumerator of a name, or None; the base's are left out."""
        if self._known and self._known.constants is not None:
            records = map(self.record, self._known.constants.find(name.encode("utf-8", "replace")))
            return next((record.id for record in records if self._enumerates(record, name)), None)
        ids = (self._enumeration(offset) for offset in self.string_offsets(name.encode("utf-8", "replace")))
        return min(filter(None, ids), default=None)

    def constants(self) -> Iterator[tuple[bytes, int]]:
        """Give every name of an enumerator of this blob's, and the id of its enumeration; for an index."""
        for number, at in enumerate(self._starts, self._first_id):
            if number and self._words[at + 1] >> 24 & 31 in _ENUMERATIONS:
                for name, _ in self.enumerators(self.record(number)):
                    yield name.encode("utf-8", "replace"), number

    def _enumerates(self, record: Record, name: str) -> bool:
        return record.kind in _ENUMERATIONS and any(name == each for each, _ in self.enumerators(record))

    def _enumeration(self, offset: int) -> int | None:
        """The first enumeration with an enumerator whose name is at an offset: the word is looked for everywhere."""
        wanted, at = struct.pack(self._order + "I", offset), -1
        while offset and (at := self._section.find(wanted, at + 1)) >= 0:
            number = bisect_right(self._starts, at // 4) - 1
            if at % 4 or number < 0:
                continue
            start = self._starts[number]
            step = {Kind.ENUM: 2, Kind.ENUM64: 3}.get(self._words[start + 1] >> 24 & 31)  # type: ignore[call-overload]
            inside = at // 4 - start - 3
            if step and inside >= 0 and inside % step == 0 and (number or self._base):
                return self._first_id + number
        return None
