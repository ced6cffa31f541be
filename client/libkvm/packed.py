"""Memory that came compressed: zstd, which the package ``zstandard`` reads (``libkvm[zstd]``).

What comes is hostile: its length is known before it is unpacked, and is no more than was asked for.
"""

from __future__ import annotations

from typing import Any

from libkvm.errors import Reason, error

_WINDOW = 8 << 20  # the most memory that a frame may make the decompressor take


def available() -> bool:
    """Tell whether this installation can unpack it."""
    try:
        import zstandard  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


def plain(piece: Any, most: int) -> bytes:
    """Answer the memory in an answer, at most so many bytes of it if it came compressed.

    :raises InternalError: it is longer, or damaged.
    """
    length: int = piece.plain_length
    data: bytes = piece.data
    if not length:
        return data
    import zstandard  # noqa: PLC0415 - asked for only where it is there

    try:
        # A frame that told another length would be unpacked to that, whatever the bound.
        if length > most or zstandard.frame_content_size(data) != length:
            raise error(Reason.INTERNAL, f"the daemon answered {length} bytes, compressed, of {most}, or lied")
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompress(data, max_output_size=length)
    except zstandard.ZstdError as e:
        raise error(Reason.INTERNAL, f"the daemon's answer can't be decompressed: {e}") from e
