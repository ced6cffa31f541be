"""Writes kallsyms tables as scripts/kallsyms.c of several releases does, for tests of what looks for them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from itertools import accumulate

TEXT = 0xFFFFFFFF81000000
ALL = (1 << 64) - 1


@dataclass(frozen=True)
class Layout:
    """What differs between releases.

    :ivar wide: whether the number of symbols and markers have 64 bits (before 5.0).
    :ivar values: ``absolute``, ``percpu`` (base-relative, absolute ones apart), ``base`` or ``own`` (since 7.0).
    :ivar after: whether values follow the token index (since 6.4).
    :ivar order: whether the order by name lies before the tokens (6.2 and 6.3).
    """

    wide: bool = False
    values: str = "percpu"
    after: bool = False
    order: bool = False
    align: int = 8


LAYOUTS = {
    "4.4": Layout(wide=True, values="absolute"),
    "4.19": Layout(wide=True),
    "5.10": Layout(),
    "5.10 without percpu": Layout(values="base"),
    "5.15 absolute": Layout(values="absolute"),
    "6.2": Layout(order=True),
    "6.4": Layout(after=True),
    "6.4 absolute": Layout(after=True, values="absolute"),
    "6.15": Layout(after=True, values="base"),
    "7.0": Layout(after=True, values="own", align=4),
}

Row = tuple[int, bytes]
"""A value, and a name after its letter."""


def symbols(count: int = 3000, layout: Layout = LAYOUTS["5.10"]) -> list[Row]:
    """A kernel's symbols, per-CPU ones first where the layout has them apart."""
    percpu = [(0x40 * i, b"A__per_cpu_%d" % i) for i in range(20)] if layout.values in ("percpu", "absolute") else []
    kinds = (b"T", b"t", b"D", b"r", b"W", b"b")
    rows = [(TEXT, b"T_text"), (TEXT, b"T_stext")]
    rows += [
        (TEXT + 24 * i, kinds[i % 6] + b"function_%d_of_%s" % (i, b"a_long_name_" * (i % 4)))
        for i in range(count - len(percpu) - 3)
    ]
    rows.append((TEXT + 24 * count, b"Dlinux_banner"))
    return percpu + rows


@dataclass
class Made:
    """Tables, and where they are in them."""

    data: bytes
    at: dict[str, int]


class _Writer:
    def __init__(self, layout: Layout, address: int) -> None:
        self.layout, self.address = layout, address
        self.data = bytearray()
        self.at: dict[str, int] = {}

    def put(self, label: str, data: bytes) -> None:
        self.data += b"\0" * (-len(self.data) % self.layout.align)
        self.at[label] = len(self.data)
        self.data += data

    def values(self, rows: list[Row]) -> None:
        base = min(value for value, _ in rows if value >> 63)
        kind = self.layout.values
        if kind == "absolute":
            self.put("addresses", struct.pack(f"<{len(rows)}Q", *(value for value, _ in rows)))
            return
        if kind == "own":
            at = self.address + len(self.data) + -len(self.data) % self.layout.align
            offsets = [(value - (at + 4 * i)) for i, (value, _) in enumerate(rows)]
        elif kind == "percpu":
            offsets = [value if not value >> 63 else base - 1 - value for value, _ in rows]
        else:
            offsets = [value - base for value, _ in rows]
        self.put("offsets", b"".join(struct.pack("<I", offset & 0xFFFFFFFF) for offset in offsets))
        if kind != "own":
            self.put("base", struct.pack("<Q", base))


def tokens(rows: list[Row]) -> list[bytes]:
    """A token a character that occurs, and pairs for the rest."""
    used = {byte for _, name in rows for byte in name} | set(b"0123456789")
    pairs = [b"fun", b"ction", b"_of_", b"long_name_", b"a_", b"per_cpu"]
    return [bytes([i]) if i in used else (pairs.pop() if pairs else b"") for i in range(256)]


def compressed(name: bytes, table: list[bytes]) -> bytes:
    """A name by its tokens."""
    longer = sorted((token for token in table if len(token) > 1), key=len, reverse=True)
    out, at = bytearray(), 0
    while at < len(name):
        token = next((t for t in longer if name.startswith(t, at)), name[at : at + 1])
        out.append(table.index(token))
        at += len(token)
    length = len(out)
    return (bytes([length]) if length < 0x80 else bytes([length & 0x7F | 0x80, length >> 7])) + bytes(out)


def made(layout: Layout, rows: list[Row] | None = None, address: int = TEXT + (8 << 20)) -> Made:
    """The tables of some symbols, with other data before and after.

    :param address: at which the tables will lie.
    """
    rows = symbols(layout=layout) if rows is None else rows
    out = _Writer(layout, address)
    table = tokens(rows)
    names = [compressed(name, table) for _, name in rows]
    starts = list(accumulate(map(len, names), initial=0))
    word = "Q" if layout.wide else "I"
    out.put("before", bytes(range(1, 256)) * 16)
    if not layout.after:
        out.values(rows)
    out.put("count", struct.pack("<" + word, len(rows)))
    out.put("names", b"".join(names))
    markers = starts[: len(rows) : 256]
    out.put("markers", struct.pack(f"<{len(markers)}{word}", *markers))
    if layout.order:
        order = sorted(range(len(rows)), key=lambda i: rows[i][1])
        out.put("order", b"".join(i.to_bytes(3, "big") for i in order))
    out.put("tokens", b"".join(token + b"\0" for token in table))
    index = list(accumulate((len(token) + 1 for token in table[:-1]), initial=0))
    out.put("index", struct.pack("<256H", *index))
    if layout.after:
        out.values(rows)
    out.put("after", bytes(range(255, 0, -1)) * 16)
    return Made(bytes(out.data), out.at)


__all__ = ["LAYOUTS", "Layout", "Made", "made", "replace", "symbols"]
