"""BTF, the kernel's description of its own types, parsed from hostile bytes. Pure.

Source: Documentation/bpf/btf.rst, Linux 6.12 (version 1, kinds 1 to 19). All ids, string offsets and counts are
checked where they are used; the index holds one word a type and is made in one pass. A module's BTF is split: its ids
and string offsets go on where those of its base, the kernel's, end (kernel/bpf/btf.c, btf_parse_module).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate

from kvmd.errors import KvmError, Reason, error

MAGIC = 0xEB9F
MAX_SIZE = 256 << 20


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
_NAMED = {
    *(Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.TYPEDEF),
    *(Kind.FUNC, Kind.VAR, Kind.FLOAT, Kind.ENUM64),
}


def _corrupt(message: str) -> KvmError:
    return error(Reason.CORRUPT_DATA, f"the kernel's BTF makes no sense: {message}")


@dataclass(frozen=True, slots=True)
class Record:
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
    words: tuple[int, ...]
    at: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member; ``bits`` is the width of a bit field, else 0; ``offset`` is in bits."""

    name: str
    type: int
    offset: int
    bits: int


class Btf:
    """One BTF blob.

    :param base: what a module's BTF goes on from.
    :raises KvmError: CORRUPT_DATA here and from every method, and nothing else.
    """

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        self._base = base
        self._first_id = len(base) if base else 0
        self._first_offset = base.string_end if base else 0
        if len(data) < 24 or len(data) > MAX_SIZE:
            raise _corrupt("its size")
        magic, version, _, length, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", data)
        if magic != MAGIC or version != 1 or length < 24:
            raise _corrupt("its header")
        types, strings = length + type_off, length + str_off
        if types + type_len > len(data) or strings + str_len > len(data) or type_len % 4:
            raise _corrupt("its sections")
        self._words: tuple[int, ...] = struct.unpack_from(f"<{type_len // 4}I", data, types)
        self._strings = data[strings : strings + str_len]
        if self._strings[-1:] != b"\0" and not (base and not str_len):
            raise _corrupt("its strings")
        if not base and self._strings[0]:
            raise _corrupt("its strings")
        self._index()

    def _index(self) -> None:
        """Find where each type begins, and the first of each kind and name."""
        fixed, per = [0] * 32, [0] * 32
        for extra, (size, each) in _EXTRA.items():
            fixed[extra], per[extra] = size, each
        named = [number in _NAMED for number in range(32)]
        words, count, first = self._words, len(self._words), self._first_id
        starts, names = array("I", [] if self._base else [0]), dict[int, int]()
        at = 0
        while at + 3 <= count:
            info = words[at + 1]
            kind = info >> 24 & 31
            if named[kind] and words[at]:
                names.setdefault(words[at] << 5 | kind, first + len(starts))
            starts.append(at)
            at += 3 + fixed[kind] + per[kind] * (info & 0xFFFF)
        if at != count:
            raise _corrupt("the last type")
        self._starts, self._names = starts, names

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
        offsets = accumulate((len(s) + 1 for s in strings), initial=self._first_offset)
        return dict(zip(strings, offsets, strict=False))

    def string_offsets(self, name: bytes) -> Iterator[int]:
        """Give the offsets at which a string stands, the base's first."""
        if self._base:
            yield from self._base.string_offsets(name)
        if name in self._string_offsets:
            yield self._string_offsets[name]

    def record(self, type_id: int) -> Record:
        """Return a type by its id; 0 is void."""
        if type_id == 0:
            return Record(0, Kind.VOID, "", 0, False, 0, (), 0)
        if self._base and type_id < self._first_id:
            return self._base.record(type_id)
        if not 0 < type_id < len(self):
            raise _corrupt(f"type id {type_id}")
        at = self._starts[type_id - self._first_id]
        name, info, value = self._words[at : at + 3]
        try:
            kind = Kind(info >> 24 & 31)
        except ValueError:
            raise _corrupt(f"kind {info >> 24 & 31}") from None
        return Record(type_id, kind, self.string(name), info & 0xFFFF, bool(info >> 31), value, self._words, at + 3)

    def find(self, name: str, *kinds: Kind) -> int | None:
        """Return the id of the first type of a name among kinds, or None; the base's come last."""
        for offset in self.string_offsets(name.encode("utf-8", "replace")):
            found = (self._names.get(offset << 5 | kind) for kind in kinds)
            if type_id := next(filter(None, found), None):
                return type_id
        return self._base.find(name, *kinds) if self._base else None

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

    def parameters(self, record: Record) -> Iterator[tuple[str, int]]:
        """Walk the (name, type id) of a FUNC_PROTO; a variadic one ends with ("", 0)."""
        for at in range(record.at, record.at + 2 * record.vlen, 2):
            yield self.string(record.words[at]), record.words[at + 1]

    @cached_property
    def constants(self) -> dict[str, int]:
        """Every enumerator's name, and the id of the first enumeration that has it; the base's are left out."""
        found: dict[str, int] = {}
        for type_id, start in enumerate(self._starts, self._first_id):
            if type_id and self._words[start + 1] >> 24 & 31 in (Kind.ENUM, Kind.ENUM64):
                for name, _ in self.enumerators(self.record(type_id)):
                    found.setdefault(name, type_id)
        return found
