"""The names of kallsyms, found without a symbol that says where: tokens, markers, compressed names. Pure.

Source: Linux scripts/kallsyms.c, 4.6 to 7.2. In every release the tables of names lie in this order, each aligned to a
word (8 bytes; 4 since 7.0): ``kallsyms_num_syms`` (64 bits before 5.0), ``kallsyms_names``, ``kallsyms_markers`` (64
bits before 5.0; from 6.2 to 6.3, and in 6.1.176, followed by ``kallsyms_seqs_of_names``), ``kallsyms_token_table``,
``kallsyms_token_index``. A character that occurs in any name is its own token, so that the digits stand in a row.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator
from itertools import accumulate, islice, pairwise
from typing import NamedTuple

DIGITS = b"\0".join(b"%c" % digit for digit in b"0123456789")
"""What a token table holds, and little else; looked for from its end, which is no zero as most of memory is."""

_TOKEN = re.compile(rb"[!-~]*")
_LETTER = re.compile(rb"[A-Za-z?-]")
_TOKENS_MAX = 256 * 64
_NAME_MAX = 1 << 11  # KSYM_NAME_LEN is 512 at most (since 6.1), and a token has one character at least
_STEP = (256 * 2, 256 * (_NAME_MAX + 2))  # bytes of 256 names
_LEAST = 1024  # symbols; the smallest kernels have thousands
_MOST = 1 << 20
_PADDING = 4 + 7  # bytes, of markers and of the order by name, each aligned to a word
_TRIES = 64  # what can be markers, and what can be a number of names: in a kernel one of each, or two
_FIRST = re.compile(rb"(?=\0{4}.[\x02-\xff][\0-\x0f]\0)", re.S)  # a zero, then what 256 names have


class Tokens(NamedTuple):
    """A token table.

    :ivar start: its offset in the window.
    :ivar end: the offset that follows its index.
    """

    start: int
    end: int
    strings: list[bytes]


class Names(NamedTuple):
    """Symbols' names, each after its type's letter.

    :ivar count_at: the offset of their number in the window, and so the end of what lies before.
    :ivar at: where they begin.
    :ivar tokens: where the table of tokens does.
    :ivar end: the offset that follows the last table, the tokens' index.
    """

    count_at: int
    at: int
    tokens: int
    end: int
    names: list[bytes]


def tokens_at(window: bytes, digits: int) -> Tokens | None:
    """The token table that has its digits at an offset of a window; None if that is none."""
    rest = window[digits : digits + _TOKENS_MAX].split(b"\0", 256 - 48)
    if len(rest) <= 256 - 48:
        return None
    end = digits + sum(map(len, rest[:-1])) + len(rest) - 1
    for align in (4, 8):
        at = -(-end // align) * align
        if at + 512 > len(window):
            return None
        index = struct.unpack_from("<256H", window, at)
        start = digits - index[ord("0")]
        strings = window[start:end].split(b"\0")[:-1] if 0 <= start < digits else []
        offsets = accumulate((len(s) + 1 for s in strings[:-1]), initial=0)
        if len(strings) == 256 and tuple(offsets) == index and all(map(_TOKEN.fullmatch, strings)):
            return Tokens(start, at + 512, strings)
    return None


def names_before(window: bytes, tokens: Tokens) -> Names | None:
    """The names that a token table belongs to; they end before it. None if there are none."""
    markers = islice(_markers(window, tokens.start), _TRIES)
    counts = (place for start, found, numbers in markers for place in _counts(window, start, found, numbers))
    for count_at, at, count, end, found in islice(counts, _TRIES):
        names = _walk(window, range(at, end), count, found, tokens.strings)
        if names is not None:
            return Names(count_at, at, tokens.start, tokens.end, names)
    return None


def _markers(window: bytes, end: int) -> Iterator[tuple[int, list[int], range]]:
    """Give what can be markers: where they begin, they, and how many names there can be.

    They end where the tokens begin, or their alignment.
    """
    for width, last in ((4, end), (4, end - 4), (8, end)):
        markers = _run_back(window, last, width)
        if markers:
            yield last - width * len(markers), markers, _names_of(len(markers))
    low = max(end - 3 * _MOST - 4 * _MOST // 256, 0)
    for match in _FIRST.finditer(window, low, end):
        start = match.start()
        markers = [] if start % 4 else _run(window, start, end)
        # 6.2 and 6.3: then comes the order by name, 3 bytes a symbol, which may begin as one marker more would.
        least = (end - start) // (4 + 3 * 256)
        for number in range(least, min(least + 1, len(markers)) + 1):
            after, names = end - start - 4 * number, _names_of(number)
            numbers = range(max((after - _PADDING) // 3, names.start), min(after // 3 + 1, names.stop))
            if numbers and number * 256 >= _LEAST:
                yield start, markers[:number], numbers


def _names_of(markers: int) -> range:
    """How many names so many markers can be of."""
    return range(256 * (markers - 1) + 1, 256 * markers + 1)


def _run_back(window: bytes, end: int, width: int) -> list[int]:
    """The markers that end at an offset: they ascend from zero by what 256 names have; none if they are too few."""
    words = array("I" if width == 4 else "Q")
    size = min(max(end, 0) // width, _MOST // 256) * width
    words.frombytes(window[end - size : end] if size else b"")
    words.reverse()
    for number, (word, before) in enumerate(pairwise(words), 2):
        if not _STEP[0] <= word - before <= _STEP[1]:
            return []
        if not before:
            return list(reversed(words[:number])) if number * 256 >= _LEAST else []
    return []


def _run(window: bytes, at: int, end: int) -> list[int]:
    """The same of markers that begin at an offset."""
    words = array("I")
    words.frombytes(window[at : at + min((end - at) // 4, _MOST // 256) * 4])
    count = next((n for n, (a, b) in enumerate(pairwise(words), 1) if not _STEP[0] <= b - a <= _STEP[1]), len(words))
    return list(words[:count]) if count * 256 >= _LEAST else []


def _counts(
    window: bytes, end: int, markers: list[int], numbers: range
) -> Iterator[tuple[int, int, int, int, list[int]]]:
    """Give what can be the number of some names: where it is, where they begin, itself, where they end, markers."""
    least, most = numbers.start, numbers.stop - 1
    high = end - markers[-1]
    low = max(high - _STEP[1], 4) + 3 & ~3
    words = array("I")
    words.frombytes(window[low - 4 : max(high, low - 4) & ~3])
    for place, count in enumerate(words):
        if least <= count <= most:
            at = low + 4 * place
            # The number's own 4 bytes, and 4 more where it has 8 or is aligned so.
            yield at - 4, at, count, end, markers
            if window[at : at + 4] == b"\0\0\0\0":
                yield at - 4, at + 4, count, end, markers


def _walk(window: bytes, span: range, count: int, markers: list[int], tokens: list[bytes]) -> list[bytes] | None:
    """Decode names; None unless they are as many as they should be, agree with the markers, and end where they end."""
    names: list[bytes] = []
    token = tokens.__getitem__
    start, end = span.start, span.stop
    at = start
    for number in range(count):
        if not number & 255 and at - start != markers[number >> 8]:
            return None
        if at + 2 > end:
            return None
        length = window[at]
        at += 1
        if length & 0x80:  # since 6.1
            length = length & 0x7F | window[at] << 7
            at += 1
        if not 2 <= length + 1 <= _NAME_MAX or at + length > end:
            return None
        names.append(b"".join(map(token, window[at : at + length])))
        at += length
    if end - at >= 8 or any(window[at:end]) or not all(map(_LETTER.match, names)):
        return None
    return names
