"""Clients that are not what they seem: connections made by one process and used by another, and frames by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def literal(key: bytes, value: bytes) -> bytes:
    """A header field without compression (RFC 7541, 6.2.2); both shorter than 127 bytes."""
    return b"\0" + bytes([len(key)]) + key + bytes([len(value)]) + value


def call_headers(path: bytes) -> bytes:
    """A call's header block."""
    words = {
        b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"x",
        b"te": b"trailers", b"content-type": b"application/grpc",
    }  # fmt: skip
    return b"".join(literal(key, value) for key, value in words.items())


def connect(target: str) -> socket.socket:
    """A connection of this process's, with nothing sent yet."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    sock.connect(target.removeprefix("unix:"))
    return sock


_CONNECTER = """
import os, socket, sys
path, uid, groups = sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
os.setgroups(groups); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
asked = socket.socket(fileno=0)
while name := asked.recv(200):
    with socket.socket(socket.AF_UNIX) as made:
        if name != b"-":
            made.bind(b"\\0" + name)
        made.connect(path)
        socket.send_fds(asked, [b"x"], [made.fileno()])
"""


class Connecter:
    """A process of another user's that connects on request and passes the connection on (SCM_RIGHTS)."""

    def __init__(self, process: subprocess.Popen[bytes], sock: socket.socket) -> None:
        self.process, self._sock = process, sock

    def connect(self, name: bytes = b"-") -> socket.socket:
        """A connection that it has made.

        :param name: an abstract name that its end is bound to.
        """
        self._sock.sendall(name)
        _, fds, _, _ = socket.recv_fds(self._sock, 1, 1)
        return socket.socket(fileno=fds[0])

    def end(self) -> None:
        """Have it exit; the connections live on where they were passed to."""
        self._sock.close()
        self.process.wait(10)


@contextlib.contextmanager
def connecting_as(uid: int, target: str, groups: tuple[int, ...] = ()) -> Iterator[Connecter]:
    """Have a process of this user connect to a daemon, or to any path."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [target.removeprefix("unix:"), str(uid), *map(str, groups)]
    with theirs:
        process = subprocess.Popen([sys.executable, "-S", "-c", _CONNECTER, *words], stdin=theirs)
    with process, ours:
        yield Connecter(process, ours)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for sock in (source, sink):  # a connection that ends, ends both ways
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relayed(made: Callable[[], socket.socket]) -> Iterator[str]:
    """A target for gRPC clients, each of whose connections goes on over one that ``made`` gives."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kvmd-relay-"))
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(f"{folder}/relay")
        listening.listen()
        threads: list[threading.Thread] = []
        socks: list[socket.socket] = []

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    accepted = listening.accept()[0]
                    try:
                        pair = accepted, made()
                    except OSError:  # then this client gets none, either
                        accepted.close()
                        continue
                    socks.extend(pair)
                    for ends in (pair, pair[::-1]):
                        threads.append(threading.Thread(target=_pump, args=ends))
                        threads[-1].start()

        server = threading.Thread(target=serve)
        server.start()
        try:
            yield f"unix:{folder}/relay"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            server.join()
            for sock in socks:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for sock in socks:
                sock.close()


def live_names(pid: int) -> set[bytes]:
    """The abstract names of a daemon's sockets, its relay's tokens; everybody can read names in /proc/net/unix."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(fd).encode())
    rows = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_bytes().splitlines()]
    named = [row for row in rows if len(row) == 8 and row[7].startswith(b"@")]
    return {row[7][1:] for row in named if b"socket:[%s]" % row[6] in inodes}
