"""The caller's buffer for the text of a failed open."""

from __future__ import annotations

from libkvm.compat.constants import POSIX2_LINE_MAX


class ErrBuf(bytearray):
    """A bytearray of POSIX2_LINE_MAX bytes whose ``str()`` is the text up to the first NUL."""

    def __init__(self) -> None:
        super().__init__(POSIX2_LINE_MAX)

    def __str__(self) -> str:
        return bytes(self).partition(b"\0")[0].decode("utf-8", "replace")


def cut(text: str) -> bytes:
    """Encode a text as an errbuf holds it: at most 2047 bytes."""
    return text.encode("utf-8", "surrogateescape")[: POSIX2_LINE_MAX - 1]


def fill(errbuf: bytearray | None, text: str) -> None:
    """Copy a text into the caller's buffer with a closing NUL, as strlcpy(3) does; a None takes nothing."""
    if not errbuf:
        return
    line = cut(text)[: len(errbuf) - 1] + b"\0"
    errbuf[: len(line)] = line
