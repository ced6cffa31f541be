"""Builds BTF by hand, right or wrong, for tests."""

from __future__ import annotations

import struct


class Builder:
    """Types are numbered from 1, or from where the base's end, in the order in which they are added."""

    def __init__(self, base: Builder | None = None) -> None:
        self.first = base.first + len(base.types) if base else 1
        self.first_string = base.first_string + len(base.strings) if base else 0
        self.strings = bytearray(b"" if base else b"\0")
        self.types: list[bytes] = []

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.first_string + len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str = "", value: int = 0, extra: tuple[int, ...] = (), **info: int) -> int:
        """``value`` is the size or type; ``extra`` the words after it; info: vlen, flag."""
        word = kind << 24 | info.get("vlen", 0) | info.get("flag", 0) << 31
        self.types.append(struct.pack(f"<{3 + len(extra)}I", self.name(name), word, value, *extra))
        return self.first + len(self.types) - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(1, name, size, (encoding << 24 | size * 8,))

    def compound(self, name: str, size: int, members: list[tuple[str, int, int]], kind: int = 4, flag: int = 0) -> int:
        """Members are (name, type, offset word)."""
        extra = tuple(word for member, kind_id, at in members for word in (self.name(member), kind_id, at))
        return self.add(kind, name, size, extra, vlen=len(members), flag=flag)

    def enum(self, name: str, values: list[tuple[str, int]], flag: int = 0, wide: bool = False) -> int:
        extra: tuple[int, ...] = ()
        for label, value in values:
            low = (value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF)[: 2 if wide else 1]
            extra += (self.name(label), *low)
        return self.add(19 if wide else 6, name, 8 if wide else 4, extra, vlen=len(values), flag=flag)

    def bytes(self) -> bytes:
        types = b"".join(self.types)
        lengths = (0, len(types), len(types), len(self.strings))
        return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, *lengths) + types + self.strings
