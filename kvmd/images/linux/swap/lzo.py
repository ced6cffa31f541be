"""LZO1X and the kernel's run-length extension of it (``lzo-rle``), decompressed. Pure.

Source: Documentation/staging/lzo.rst, Linux 6.12 (bitstream versions 0 and 1). The input is hostile: the output never
grows beyond the limit, and every instruction takes at least one byte of the input.
"""

from __future__ import annotations

_VERSIONED = 17  # the first byte of a stream that names its version in the second
_MIN_RUN = 4  # MIN_ZERO_RUN_LENGTH
_M2_REACH = 2048


class LzoError(ValueError):
    """The stream contradicts itself."""


class _Stream:
    """One stream; IndexError is the end of the input."""

    def __init__(self, data: bytes, limit: int) -> None:
        self.data, self.limit = data, limit
        self.at = 0
        self.out = bytearray()

    def byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def word(self) -> int:
        return self.byte() | self.byte() << 8

    def long(self, base: int) -> int:
        """A length too long for its instruction: 255 for every zero byte, and the first other one."""
        while not (value := self.byte()):
            base += 255
        return base + value

    def literals(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise LzoError("literals beyond the end of the input")
        self._room(count)
        self.out += self.data[self.at : self.at + count]
        self.at += count

    def copy(self, distance: int, count: int) -> None:
        """Repeat what was written ``distance`` bytes ago, which may be less than ``count``."""
        start = len(self.out) - distance
        if start < 0:
            raise LzoError("a copy from before the beginning")
        self._room(count)
        piece = bytes(self.out[start : start + count])
        self.out += (piece * (count // len(piece) + 1))[:count]

    def zeros(self, count: int) -> None:
        self._room(count)
        self.out += bytes(count)

    def _room(self, count: int) -> None:
        if len(self.out) + count > self.limit:
            raise LzoError("more output than there may be")


def decompress(data: bytes, limit: int) -> bytes:
    """Decompress a stream to at most ``limit`` bytes.

    :raises LzoError: for anything but a stream that ends where it says, of at most so many bytes.
    """
    stream = _Stream(data, limit)
    try:
        _run(stream)
    except IndexError:
        raise LzoError("the input ends too early") from None
    if stream.at != len(data):
        raise LzoError("bytes after the end of the stream")
    return bytes(stream.out)


def _run(stream: _Stream) -> None:
    runs = len(stream.data) >= 5 and stream.data[0] == _VERSIONED and bool(stream.data[1])
    stream.at = 2 if len(stream.data) >= 5 and stream.data[0] == _VERSIONED else 0
    state = 0
    if stream.data[stream.at] > 17:
        state = stream.byte() - 17
        stream.literals(state)
        state = min(state, 4)
    while True:
        code = stream.byte()
        if code >= 64:
            state = _near(stream, code)
        elif code >= 32:
            state = _middle(stream, code)
        elif code >= 16:
            last = _far(stream, code, runs)
            if last is None:
                return
            state = last
        elif state == 0:
            stream.literals(3 + (code or stream.long(15)))
            state = 4
            continue
        else:
            high = stream.byte() << 2
            stream.copy(*((high + (code >> 2) + 1, 2) if state < 4 else (high + (code >> 2) + 1 + _M2_REACH, 3)))
            state = code & 3
        stream.literals(state)


def _near(stream: _Stream, code: int) -> int:
    """3 to 8 bytes from within 2 KiB; answers how many literals follow."""
    stream.copy((stream.byte() << 3) + (code >> 2 & 7) + 1, (code >> 5) + 1)
    return code & 3


def _middle(stream: _Stream, code: int) -> int:
    """A block from within 16 KiB."""
    count = 2 + (code & 31 or stream.long(31))
    word = stream.word()
    stream.copy((word >> 2) + 1, count)
    return word & 3


def _far(stream: _Stream, code: int, runs: bool) -> int | None:
    """A block from within 48 KiB, a run of zeros, or the end (None)."""
    ahead = stream.data[stream.at] | stream.data[stream.at + 1] << 8
    if runs and code & 0xF8 == 0x18 and ahead & 0xFFFC == 0xFFFC:
        stream.at += 2
        stream.zeros((stream.byte() << 3 | code & 7) + _MIN_RUN)
        return ahead & 3
    count = 2 + (code & 7 or stream.long(7))
    word = stream.word()
    distance = ((code & 8) << 11) + (word >> 2)
    if not distance:
        if count != 3:
            raise LzoError("an end that is none")
        return None
    stream.copy(distance + 0x4000, count)
    return word & 3
