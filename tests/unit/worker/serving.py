"""A worker's request loop in a thread, an image made for the purpose, and the daemon's end of it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

from kvmd.errors import Reason, error
from kvmd.images.base import Files
from kvmd.images.base import Kind as ImageKind
from kvmd.v1 import image_pb2, memory_pb2, process_pb2, symbol_pb2
from kvmd.worker.loop import Loop
from kvmd.worker.protocol import HEADER, Kind, OpenFrame, decode_error, frame

LENGTH = 3 << 20
FRAME = OpenFrame(ImageKind.LIVE, (("core", "/c"), ("kallsyms", "/k"), ("exec", "/e")), True)


class Memory:
    """An image of 3 MiB in which byte n is n modulo 251, and a process table of as many as asked for."""

    byte_order = "little"

    def __init__(self, files: Files) -> None:
        self.files = files

    def kernel_name(self) -> str:
        return "kallsyms"

    def foreign(self) -> bool:
        return True

    def info(self) -> image_pb2.Info:
        raise ZeroDivisionError("secret detail")

    def read(self, address: int, length: int, space: int, pid: int = 0) -> bytes:
        if space == memory_pb2.ADDRESS_SPACE_PHYSICAL:
            raise MemoryError
        if address + length > LENGTH:
            readable = max(0, LENGTH - address)
            raise error(Reason.NOT_MAPPED, "not mapped", address=LENGTH, readable=readable)
        return bytes(n % 251 for n in range(address, address + length))

    def read_into(self, address: int, into: memoryview, space: int) -> bool:
        if address % 2 or address + len(into) > LENGTH:
            return False
        into[:] = self.read(address, len(into), memory_pb2.ADDRESS_SPACE_KERNEL)
        return True

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        return [symbol_pb2.Symbol(name=name, found=name == "here") for name in names]

    def processes(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        for pid in range(1, request.argument + 1):
            yield process_pb2.Process(pid=pid, comm=b"x" * 1000)

    def strings(self, pid: int, kind: int, limit: int) -> process_pb2.Strings:
        return process_pb2.Strings(values=[b"a", b"\xff"])

    def log(self) -> Iterator[image_pb2.LogRecord]:
        yield image_pb2.LogRecord(text=b"first")
        raise error(Reason.CORRUPT_DATA, "the second is torn")


class Daemon:
    """The other end."""

    def __init__(self, image: type[Memory] = Memory) -> None:
        self._image = image
        self.sock, theirs = socket.socketpair()
        self.images: list[Memory] = []
        self.thread = threading.Thread(target=self._serve, args=(theirs,))
        self.thread.start()
        assert self.answer() == (Kind.READY, b"")

    def _serve(self, theirs: socket.socket) -> None:
        def open_image(files: Files) -> Memory:
            self.images.append(self._image(files))
            return self.images[-1]

        with theirs, contextlib.suppress(ConnectionError):
            Loop(theirs, open_image).run()

    def answer(self) -> tuple[Kind, bytes]:
        kind, length = HEADER.unpack(self.sock.recv(HEADER.size, socket.MSG_WAITALL))
        return Kind(kind), self.sock.recv(length, socket.MSG_WAITALL) if length else b""

    def ask(self, kind: Kind, payload: bytes = b"", fds: Sequence[int] = ()) -> tuple[Kind, bytes]:
        socket.send_fds(self.sock, [frame(kind, payload)], fds)
        return self.answer()

    def call(self, method: str, request: object) -> tuple[Kind, bytes]:
        return self.ask(Kind.CALL, method.encode() + b"\0" + request.SerializeToString())

    def open(self) -> tuple[Kind, bytes]:
        with open("/dev/null", "rb") as core, open("/dev/zero", "rb") as exec_:
            return self.ask(Kind.OPEN, FRAME.encode(), [core.fileno(), core.fileno(), exec_.fileno()])

    def close(self) -> None:
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


def reason(answer: tuple[Kind, bytes]) -> Reason:
    assert answer[0] is Kind.ERROR
    return decode_error(answer[1]).reason
