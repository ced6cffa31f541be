"""Text of a dump or a daemon, made harmless to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Escape what a terminal could obey or hide: control, format and separator characters, undecodable bytes.

    >>> printable("bash\x1b[2J")
    'bash\\x1b[2J'
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(char: str) -> str:
    code = ord(char)
    if char.isprintable():
        return char
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape kept
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
