"""The output of hexdump -C."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from libkvm.errors import KvmError

_ROW = 16


def hexdump(address: int, chunks: Iterable[bytes]) -> Iterator[str]:
    """Render memory, 16 bytes a line, repeated lines as ``*``; ends with the address after it.

    :param chunks: its bytes; what came before an error is rendered before the error is raised again.
    """
    previous, starred = b"", False
    for row in _rows(chunks):
        if row == previous:
            if not starred:
                yield "*"
            starred = True
        else:
            yield _line(address, row)
            previous, starred = row, False
        address += len(row)
    yield f"{address:016x}"


def _rows(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    try:
        for chunk in chunks:
            rest += chunk
            whole = len(rest) - len(rest) % _ROW
            yield from (rest[start : start + _ROW] for start in range(0, whole, _ROW))
            rest = rest[whole:]
    except KvmError:
        if rest:
            yield rest
        raise
    if rest:
        yield rest


def _line(address: int, row: bytes) -> str:
    left, right = row[:8].hex(" "), row[8:].hex(" ")
    shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
    return f"{address:016x}  {left:23}  {right:23}  |{shown}|"
