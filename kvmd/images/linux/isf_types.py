"""Types of Volatility's symbol files as BTF, which all that reads types can read. Pure.

Source: Volatility's schema 6.2.0 and what dwarf2json writes, in which members are sorted by name.
"""

from __future__ import annotations

import struct
from array import array
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.btf import MAGIC, Kind

_COMPOUND = {"struct": Kind.STRUCT, "class": Kind.STRUCT, "union": Kind.UNION}
_POINTER = 8
_DEPTH = 32
_ALL = (1 << 64) - 1
_WORD = (1 << 32) - 1


def corrupt(what: str) -> KvmError:
    """The error for a file that contradicts itself."""
    return error(Reason.CORRUPT_DATA, f"the symbol file makes no sense: {what}")


def number(value: Any, most: int = _WORD, least: int = 0) -> int:
    """A number within bounds."""
    if type(value) is not int or not least <= value <= most:
        raise corrupt(f"{str(value)[:40]} for a number")
    return value


def get(place: Any, key: str, kind: type) -> Any:
    """What a JSON object has by a name."""
    value = place.get(key) if isinstance(place, dict) else None
    if not isinstance(value, kind):
        raise corrupt(f"no {key}")
    return value


class Writer:
    """Makes BTF of a symbol file's types.

    :param document: its parts.
    :raises KvmError: CORRUPT_DATA here and from every method.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        self._strings = bytearray(b"\0")
        self._offsets = {"": 0}
        self._records: list[tuple[int, ...]] = []
        self._known: dict[tuple[Any, ...], int] = {}
        base = ((("base", name), each) for name, each in document["base_types"].items() if name != "void")
        enums = ((("enum", name), each) for name, each in document["enums"].items())
        user = ((("user", name), each) for name, each in document["user_types"].items())
        listed = [*base, *enums, *user]
        for type_id, (key, _) in enumerate(listed, 1):
            self._known[key] = type_id
        self._records = [()] * len(listed)
        makers = {"base": self._base, "enum": self._enum, "user": self._user}
        for index, ((kind, name), each) in enumerate(listed):
            self._records[index] = makers[kind](name, each)

    def bytes(self) -> bytes:
        """The BTF."""
        words = array("I")
        for record in self._records:
            words.extend(record)
        types = words.tobytes()
        return struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(types), len(types), len(self._strings)) + (
            types + bytes(self._strings)
        )

    def variable(self, name: str, kind: Any) -> None:
        """Add the type of a variable, if it is known; many have none."""
        type_id = self.type_id(kind)
        if type_id and kind.get("kind") != "function":
            self._add(self._record(name, _info(Kind.VAR), type_id, (1,)))

    def size(self, kind: Any, depth: int = 0) -> int:
        """The size of a type in bytes, 0 if it is not known."""
        match kind.get("kind") if isinstance(kind, dict) and depth < _DEPTH else None:
            case "pointer":
                return _POINTER
            case "array":
                return min(number(kind.get("count")) * self.size(kind.get("subtype"), depth + 1), _WORD)
            case "struct" | "union" | "class":
                return number(self._document["user_types"].get(str(kind.get("name")), {}).get("size", 0))
            case "base" if kind.get("name") != "void":
                return number(self._document["base_types"].get(str(kind.get("name")), {}).get("size", 0))
            case "enum":
                return number(self._document["enums"].get(str(kind.get("name")), {}).get("size", 0))
        return 0

    def type_id(self, kind: Any, depth: int = 0) -> int:
        """The id of a type, which is made if it has no name."""
        if depth > _DEPTH:
            raise corrupt("types of types without end")
        what = get(kind, "kind", str)
        if what == "pointer":
            return self._made(_info(Kind.PTR), self.type_id(get(kind, "subtype", dict), depth + 1))
        if what == "array":
            element = self.type_id(get(kind, "subtype", dict), depth + 1)
            return self._made(_info(Kind.ARRAY), 0, (element, 1, number(kind.get("count"))))
        if what == "function":
            return self._made(_info(Kind.FUNC_PROTO), 0)
        name = get(kind, "name", str)
        if what == "base" and name == "void":
            return 0
        group = "user" if what in _COMPOUND else what
        known = self._known.get((group, name))
        if known is not None:
            return known
        if group != "user":
            raise corrupt(f"no {what} of the name {name[:40]}")
        return self._made(_info(Kind.FWD, flag=what == "union"), 0, name=name)

    def _made(self, info: int, value: int, extra: tuple[int, ...] = (), name: str = "") -> int:
        key = info, value, extra, name
        if key not in self._known:
            self._known[key] = self._add(self._record(name, info, value, extra))
        return self._known[key]

    def _add(self, record: tuple[int, ...]) -> int:
        self._records.append(record)
        return len(self._records)

    def _record(self, name: str, info: int, value: int, extra: tuple[int, ...] = ()) -> tuple[int, ...]:
        return self._name(name), info, value, *extra

    def _name(self, text: str) -> int:
        if text not in self._offsets:
            data = text.encode("utf-8", "replace")
            if b"\0" in data:
                raise corrupt("a name with a NUL")
            self._offsets[text] = len(self._strings)
            self._strings += data + b"\0"
        return self._offsets[text]

    def _base(self, name: str, each: Any) -> tuple[int, ...]:
        size, what = number(get(each, "size", int), 16), get(each, "kind", str)
        if what == "float":
            return self._record(name, _info(Kind.FLOAT), size)
        encoding = 4 if what == "bool" else int(bool(each.get("signed")))
        return self._record(name, _info(Kind.INT), size, (encoding << 24 | size * 8,))

    def _enum(self, name: str, each: Any) -> tuple[int, ...]:
        size, values = number(get(each, "size", int), 8), get(each, "constants", dict)
        wide, words = size > 4, list[int]()
        signed = any(type(value) is int and value < 0 for value in values.values())
        for label, given in values.items():
            value = number(given, _ALL if wide else _WORD, -(1 << 63 if wide else 1 << 31)) & _ALL
            words += [self._name(label), value & _WORD, *([value >> 32] if wide else [])]
        info = _info(Kind.ENUM64 if wide else Kind.ENUM, len(values), flag=signed)
        return self._record(_plain(name), info, size, tuple(words))

    def _user(self, name: str, each: Any) -> tuple[int, ...]:
        kind = _COMPOUND.get(get(each, "kind", str))
        if kind is None:
            raise corrupt(f"{name[:40]} is neither struct nor union")
        rows = [self._field(label, given) for label, given in get(each, "fields", dict).items()]
        rows.sort(key=lambda row: row[2])
        bits = any(row[3] for row in rows)
        words = list[int]()
        for label, type_id, at, width in rows:
            if at > (0xFFFFFF if bits else _WORD):
                raise corrupt(f"{name[:40]} is too large")
            words += [self._name(label), type_id, width << 24 | at]
        info = _info(kind, len(rows), flag=bits)
        return self._record(_plain(name), info, number(get(each, "size", int)), tuple(words))

    def _field(self, label: str, given: Any) -> tuple[str, int, int, int]:
        """A member's name, type, offset and width, in bits; the last is 0 but of bit fields."""
        at, kind = number(get(given, "offset", int)) * 8, get(given, "type", dict)
        name = "" if given.get("anonymous") is True else label
        if kind.get("kind") != "bitfield":
            return name, self.type_id(kind), at, 0
        at += number(kind.get("bit_position"), 0xFF)
        return name, self.type_id(get(kind, "type", dict)), at, number(kind.get("bit_length"), 64)


def _info(kind: Kind, vlen: int = 0, *, flag: bool = False) -> int:
    if vlen > 0xFFFF:
        raise corrupt(f"{vlen} members")
    return kind << 24 | vlen | flag << 31


def _plain(name: str) -> str:
    """The name; what dwarf2json calls types that have none is none."""
    return "" if name.startswith("unnamed_") else name
