"""Asks a gRPC server over a Unix socket whether it serves, as the standard health check does, in HTTP/2 by hand.

grpc's own client is for what the daemon's questions to itself have no use: names, balancing, retries. To start one
takes longer than to start the server. What is asked is always the same, so it is bytes; of the answer nothing is
decoded but the frames: who is refused gets headers and no message ("Trailers-Only"). Sources: RFC 9113 (HTTP/2),
RFC 7541 (HPACK), gRPC's doc/PROTOCOL-HTTP2.md.
"""

from __future__ import annotations

import asyncio
import socket

ANSWERED, REFUSED = "an answer", "a refusal"

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_HEAD = 9
_MOST = 1 << 14  # the longest frame there is to one who has not asked for longer ones (SETTINGS_MAX_FRAME_SIZE)
_PATIENCE = 10.0


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _header(name: bytes, value: bytes) -> bytes:
    """A header that is literal, and put in no table (RFC 7541, 6.2.2)."""
    return b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value


_HEADER_BLOCK = b"".join(
    _header(*each)
    for each in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )
)
_QUESTION = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(_SETTINGS, 0, 0)
    + _frame(_HEADERS, _END_HEADERS, 1, _HEADER_BLOCK)
    + _frame(_DATA, _END_STREAM, 1, bytes(5))  # an empty message, not compressed
)


async def ask(path: str) -> str:
    """What a call by a socket comes to: ANSWERED, REFUSED, or in words what else."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            async with asyncio.timeout(_PATIENCE):
                loop = asyncio.get_running_loop()
                await loop.sock_connect(sock, path)
                await loop.sock_sendall(sock, _QUESTION)
                return await _answer(sock)
    except TimeoutError:
        return "no answer in time"
    except (OSError, ValueError) as failure:
        return str(failure)


async def _answer(sock: socket.socket) -> str:
    answered = False
    while True:
        kind, flags = await _next(sock)
        if kind in (_GOAWAY, _RST_STREAM):
            return "no answer"
        if kind == _DATA:
            answered = True
        if kind == _HEADERS and flags & _END_STREAM:
            return ANSWERED if answered else REFUSED


async def _next(sock: socket.socket) -> tuple[int, int]:
    """Kind and flags of the next frame."""
    head = await _exactly(sock, _HEAD)
    length = int.from_bytes(head[:3], "big")
    if length > _MOST:
        raise ValueError("an answer that is no HTTP/2")
    await _exactly(sock, length)
    return head[3], head[4]


async def _exactly(sock: socket.socket, length: int) -> bytes:
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < length:
        piece = await loop.sock_recv(sock, length - len(data))
        if not piece:
            raise ValueError("no answer")
        data += piece
    return data
