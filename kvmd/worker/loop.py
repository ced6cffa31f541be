"""The worker's request loop: read a frame, answer it, until the daemon closes the socket."""

from __future__ import annotations

import socket
import sys
import traceback
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Files, Image
from kvmd.worker.methods import METHODS
from kvmd.worker.protocol import CURSOR, HEADER, MAX_FILES, MAX_PAYLOAD, Kind, Opened, OpenFrame, encode_error

MAX_CURSORS = 256
"""The most streams that wait for their client at once."""

OpenImage = Callable[[Files], Image]
Answer = tuple[Kind, bytes]


class Loop:
    """Answers one daemon over one socket."""

    def __init__(self, sock: socket.socket, open_image: OpenImage) -> None:
        self._sock = sock
        self._open_image = open_image
        self._image: Image | None = None
        self._streams: dict[int, Iterator[bytes]] = {}
        self._numbers = count(1)

    def run(self, protections: Sequence[str] = ()) -> None:
        """Serve until end of file, or until memory runs out.

        :param protections: what the process has given up, for the daemon's log.
        """
        self._send(Kind.READY, ", ".join(protections).encode())
        while (request := self._receive()) is not None:
            kind, payload, fds = request
            failure: KvmError | None = None
            try:
                answer = self._answer(kind, payload, fds)
            except KvmError as known:
                failure = known
            except MemoryError:
                failure = error(Reason.WORKER_MEMORY, "the image needs more memory than limits.worker_memory allows")
            except Exception:  # noqa: BLE001 - a fault of ours: told to the log, not to the client
                traceback.print_exc(file=sys.stderr)
                failure = error(Reason.INTERNAL, "internal error in the image's worker; the daemon's log has more")
            if failure is not None:
                answer = Kind.ERROR, encode_error(failure).SerializeToString()
            self._send(*answer)
            if failure is not None and failure.reason is Reason.WORKER_MEMORY:
                return  # what is left after that can't be relied on

    def _receive(self) -> tuple[Kind, bytes, list[int]] | None:
        """The next frame and its descriptors; None at end of file."""
        fds = array("i")
        # Not socket.recv_fds: it drops the flags that it is given (Python 3.11 to 3.13).
        flags = socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
        head, messages, _, _ = self._sock.recvmsg(HEADER.size, socket.CMSG_LEN(MAX_FILES * fds.itemsize), flags)
        for _level, _type, data in messages:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if len(head) < HEADER.size:
            return None
        kind, length = HEADER.unpack(head)
        if length > MAX_PAYLOAD:
            raise ConnectionError(f"frame of {length} bytes")
        payload = self._sock.recv(length, socket.MSG_WAITALL) if length else b""
        return (Kind(kind), payload, list(fds)) if len(payload) == length else None

    def _send(self, kind: Kind, payload: bytes) -> None:
        header = HEADER.pack(kind, len(payload))
        sent = self._sock.sendmsg([header, payload])
        if sent < len(header) + len(payload):  # a signal came in between
            self._sock.sendall((header + payload)[sent:])

    def _answer(self, kind: Kind, payload: bytes, fds: list[int]) -> Answer:
        if kind is Kind.OPEN:
            return self._open(OpenFrame.decode(payload), fds)
        if kind is Kind.CALL:
            return self._call(payload)
        (cursor,) = CURSOR.unpack(payload)
        if kind is Kind.NEXT:
            return self._pull(cursor, self._streams.pop(cursor))
        self._streams.pop(cursor, None)
        return Kind.END, b""

    def _open(self, names: OpenFrame, fds: list[int]) -> Answer:
        opened = [(role, File(fd, name)) for (role, name), fd in zip(names.files, fds, strict=True)]
        one = dict(opened)
        core, execfile = one.pop("core", None), one.pop("exec", None)
        one.pop("swap", None)
        swap = tuple(file for role, file in opened if role == "swap")
        files = Files(core, execfile, swap, names.writable, names.kind, one, names.dump_offset)
        self._image = self._open_image(files)
        return Kind.RESULT, Opened(self._image.kernel_name(), self._image.foreign()).encode()

    def _call(self, payload: bytes) -> Answer:
        method, _, request = payload.partition(b"\0")
        if self._image is None:
            raise error(Reason.INTERNAL, "no image is open")
        answer = METHODS[method.decode()](self._image, request)
        if isinstance(answer, bytes):
            return Kind.RESULT, answer
        if len(self._streams) >= MAX_CURSORS:
            message = f"{MAX_CURSORS} streams of this image are open; finish some"
            raise error(Reason.WORKER_LIMIT, message, limit=MAX_CURSORS)
        return self._pull(next(self._numbers), answer)

    def _pull(self, cursor: int, stream: Iterator[bytes]) -> Answer:
        """The next message of a stream; a stream that ends or fails is forgotten."""
        message = next(stream, None)
        if message is None:
            return Kind.END, b""
        self._streams[cursor] = stream
        return Kind.ITEM, CURSOR.pack(cursor) + message
