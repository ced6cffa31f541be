"""A program that floods a daemon: ``flood.py PATH UID KIND CONNECTIONS SECONDS``; prints how many connections
are left, and how much was sent.

Each kind is a generator of frames (RFC 9113) that cost their sender little. The daemon's answers are read and dropped.
"""

from __future__ import annotations

import itertools
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator

from clients import PREFACE, call_headers, frame, literal

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
END_HEADERS = 4
BLOCK = call_headers(b"/kvmd.v1.KvmService/GetInfo")


def same(data: bytes) -> Callable[[], Iterator[bytes]]:
    return lambda: itertools.repeat(data)


def streams(make: Callable[[int], bytes]) -> Callable[[], Iterator[bytes]]:
    """A new stream each."""
    return lambda: (make(number) for number in itertools.count(1, 2))


def huge(number: int) -> bytes:
    """200 KiB of metadata."""
    parts = [frame(CONTINUATION, 0, number, literal(b"k%d" % i, b"v" * 100) * 100) for i in range(20)]
    return frame(HEADERS, 0, number, BLOCK) + b"".join(parts) + frame(CONTINUATION, END_HEADERS, number)


MANY = b"".join(literal(b"k%d" % i, b"") for i in range(1000))
KINDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "rapid reset": streams(lambda n: frame(HEADERS, END_HEADERS, n, BLOCK) + frame(RST_STREAM, 0, n, b"\0\0\0\x08")),
    "calls without end": streams(lambda n: frame(HEADERS, END_HEADERS, n, BLOCK)),
    "huge metadata": streams(huge),
    "thousands of headers": streams(lambda n: frame(HEADERS, END_HEADERS, n, BLOCK + MANY)),
    "CONTINUATION": lambda: itertools.chain(
        [frame(HEADERS, 0, 1, BLOCK)], itertools.repeat(frame(CONTINUATION, 0, 1, literal(b"a", b"b" * 100)) * 100)
    ),
    "empty CONTINUATION": lambda: itertools.chain(
        [frame(HEADERS, 0, 1, BLOCK)], itertools.repeat(frame(CONTINUATION, 0, 1) * 1000)
    ),
    "empty DATA": lambda: itertools.chain(
        [frame(HEADERS, END_HEADERS, 1, BLOCK)], itertools.repeat(frame(DATA, 0, 1) * 1000)
    ),
    "SETTINGS": same(frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 500),
    "PING": same(frame(PING, 0, 0, bytes(8)) * 500),
    "WINDOW_UPDATE": same(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 500),
    "PRIORITY": same(frame(PRIORITY, 0, 3, b"\0\0\0\0\1") * 500),
    "GOAWAY": same(frame(GOAWAY, 0, 0, bytes(8)) * 500),
    "unknown frames": same(frame(77, 0, 0, bytes(1000)) * 50),
    "garbage": lambda: (os.urandom(5000) for _ in itertools.count()),
}
"""What is sent once a connection has begun as HTTP/2 does."""


class Flood:
    """One connection that is flooded."""

    def __init__(self, path: str, kind: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(path)
        self.sock.setblocking(False)
        self.frames = itertools.chain([PREFACE + frame(SETTINGS, 0, 0)], KINDS[kind]())
        self.rest = b""
        self.sent = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def go_on(self, *, readable: bool, writable: bool) -> bool:
        """Read and write what can be; False if it was cut."""
        try:
            if readable and not self.sock.recv(1 << 16):
                return False
            if writable:
                self.rest = self.rest or next(self.frames)
                count = self.sock.send(self.rest)
                self.rest, self.sent = self.rest[count:], self.sent + count
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def main() -> None:
    path, uid, kind, count, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5])
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    begun = [Flood(path, kind) for _ in range(count)]
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    left, end = list(begun), time.monotonic() + seconds
    while left and time.monotonic() < end:
        readable, writable, _ = select.select(left, left, [], 0.1)
        left = [each for each in left if each.go_on(readable=each in readable, writable=each in writable)]
    sys.stdout.write(f"{len(left)} {sum(each.sent for each in begun)}\n")


if __name__ == "__main__":
    main()
