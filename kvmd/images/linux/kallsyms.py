"""The kernel's symbol table as it stands in its memory, decoded a symbol at a time. Pure but for the reads.

Source: Linux kernel/kallsyms.c, scripts/kallsyms.c (6.0 to 7.2). Addresses are offsets from a base that KASLR moves;
names are strings of tokens, the first letter of each is nm(1)'s.
"""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from kvmd.images.linux.memory import Read, in_chunks
from kvmd.images.linux.order import LITTLE, Order, number

_MOST = 1 << 22  # symbols; a kernel with all of its drivers built in has some 300,000
_MOST_NAMES = 64 << 20
_TOKENS = 256
_MOST_TOKENS = 16 << 10
_PARTS = ("offsets", "names", "tokens", "indexes")
_MASK = (1 << 64) - 1


class Entry(NamedTuple):
    """A symbol: its letter and name, and where in the names the next one is."""

    letter: str
    name: bytes
    end: int


@dataclass(frozen=True)
class RawKallsyms:
    """The tables, all numbers of them little-endian, whatever the kernel is.

    :ivar offsets: a word of 32 bits a symbol, in ascending order of address.
    :ivar names: each name's length (one byte, or two from 128 on) and tokens.
    :ivar tokens: what they stand for, with a NUL behind each.
    :ivar indexes: where in those each of 256 begins, 16 bits each.
    :ivar placed: whether a word counts from its own place.
    """

    offsets: bytes
    names: bytes
    tokens: bytes
    indexes: bytes
    placed: bool = False

    @property
    def count(self) -> int:
        """How many symbols there are."""
        return len(self.offsets) // 4

    @property
    def parts(self) -> dict[str, bytes]:
        """All of it, by name."""
        return {name: getattr(self, name) for name in _PARTS}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        whole = hashlib.sha256()
        for part in self.parts.values():
            whole.update(struct.pack("<Q", len(part)))
            whole.update(part)
        return whole.digest()

    @cached_property
    def _tokens(self) -> list[bytes]:
        if len(self.indexes) != 2 * _TOKENS:
            raise ValueError("the places of tokens are cut")
        starts = struct.unpack(f"<{_TOKENS}H", self.indexes)
        return [self.tokens[at : self.tokens.find(b"\0", at)] for at in starts]

    def entry(self, at: int) -> Entry:
        """Decode the symbol whose name begins at a place.

        :raises ValueError: none does.
        """
        if not 0 <= at < len(self.names) - 2:
            raise ValueError("no name begins there")
        length = self.names[at]
        at += 1
        if length & 0x80:  # since 6.1
            length = length & 0x7F | self.names[at] << 7
            at += 1
        text = b"".join(map(self._tokens.__getitem__, self.names[at : at + length]))
        return Entry(chr(text[0]) if text else "?", text[1:], at + length)

    def entries(self) -> Iterator[tuple[int, Entry]]:
        """Decode all, in order of their numbers; each with the place where its name begins.

        :raises ValueError: they make no sense.
        """
        at = 0
        for _ in range(self.count):
            entry = self.entry(at)
            yield at, entry
            at = entry.end

    def offset(self, number: int) -> int:
        """The word of a symbol, by its number, as a signed one."""
        found: int = struct.unpack_from("<i", self.offsets, 4 * number)[0]
        return found


def addresses(raw: RawKallsyms, number: int, known: int) -> Callable[[int], int]:
    """How a symbol's address follows from its number, if that of one in the kernel's half is known.

    A word is an offset from a base; or, if it isn't negative, absolute, and else one less than the offset below zero
    (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, to 6.14); or an offset from the word's own place (7.0 on).
    """
    first = raw.offset(number)
    if raw.placed:
        return lambda other: known + raw.offset(other) - first + 4 * (other - number) & _MASK
    if first < 0:
        base = known + 1 + first

        def address(other: int) -> int:
            offset = raw.offset(other)
            return offset if offset >= 0 else base - 1 - offset & _MASK

        return address
    return lambda other: known - first + (raw.offset(other) & 0xFFFFFFFF) & _MASK


def _little(code: str, data: bytes, order: Order) -> bytes:
    if order == LITTLE:
        return data
    swapped = array(code, data)
    swapped.byteswap()
    return swapped.tobytes()


def read_raw(symbols: dict[str, int], read: Read, order: Order) -> RawKallsyms | None:
    """Read the tables, where VMCOREINFO says that they are; None if it doesn't, or they can't be such.

    :param order: the kernel's byte order.

    :raises KvmError: the fault of a page that holds them.
    """
    names = ("num_syms", "names", "token_table", "token_index", "offsets")
    if any(f"kallsyms_{name}" not in symbols for name in names):
        return None
    count_at, start, table, index, offsets = (symbols[f"kallsyms_{name}"] for name in names)
    count = number(read(count_at, 4), order)
    # What follows the names differs between kernels; there they end at the latest.
    end = min((at for at in (table, index, offsets) if at > start), default=start)
    if not (0 < count <= _MOST and 0 < end - start <= _MOST_NAMES and 0 < index - table <= _MOST_TOKENS):
        return None
    return RawKallsyms(
        _little("I", in_chunks(read, offsets, 4 * count), order),
        in_chunks(read, start, end - start),
        read(table, index - table),
        _little("H", read(index, 2 * _TOKENS), order),
        placed="kallsyms_relative_base" not in symbols,
    )
