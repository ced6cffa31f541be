"""Memory in answers, compressed where a client has asked for that and it pays."""

from __future__ import annotations

from typing import TypeVar

import zstandard

from kvmd.v1 import memory_pb2

LEVEL = 1
LEAST = 512
"""Shorter pieces are sent as they are."""

Piece = TypeVar("Piece", memory_pb2.ReadResponse, memory_pb2.ReadStreamResponse, memory_pb2.RangeResult)


def packed(piece: Piece, wanted: bool) -> Piece:
    """Compress what an answer holds, if that makes it an eighth shorter at least."""
    if wanted and len(piece.data) >= LEAST:
        data = zstandard.ZstdCompressor(level=LEVEL).compress(piece.data)
        if len(data) <= len(piece.data) * 7 // 8:
            piece.plain_length, piece.data = len(piece.data), data
    return piece
