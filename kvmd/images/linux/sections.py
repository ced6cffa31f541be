"""Named parts of bytes in one piece: what goes to and comes from the maker of an index. Pure; read as hostile.

A u32 that counts parts; for each its name (24 bytes, padded with NUL), offset and length (u64 each); the parts.
Everything is little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

_COUNT = struct.Struct("<I")
_HEAD = struct.Struct("<24sQQ")
_MOST = 64

Bytes = bytes | memoryview


def pack(parts: Mapping[str, Bytes]) -> bytes:
    """Put parts together; each begins at a multiple of 8."""
    heads, body = [_COUNT.pack(len(parts))], list[Bytes]()
    at = _COUNT.size + len(parts) * _HEAD.size
    for name, data in parts.items():
        pad = -at % 8
        heads.append(_HEAD.pack(name.encode("ascii"), at + pad, len(data)))
        body += [bytes(pad), data]
        at += pad + len(data)
    return b"".join([*heads, *body])


def unpack(data: memoryview) -> dict[str, memoryview]:
    """Take parts apart, without a copy.

    :raises ValueError: this is no such piece.
    """
    try:
        (count,) = _COUNT.unpack_from(data)
        if count > _MOST:
            raise ValueError("too many parts")
        heads = [_HEAD.unpack_from(data, _COUNT.size + n * _HEAD.size) for n in range(count)]
    except struct.error as e:
        raise ValueError(str(e)) from e
    if any(at + length > len(data) for _, at, length in heads):
        raise ValueError("a part outside of the whole")
    return {name.rstrip(b"\0").decode("ascii", "replace"): data[at : at + length] for name, at, length in heads}
