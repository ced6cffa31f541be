"""The worker's request loop: one request after the other, of the daemon and of clients of the fast path, in turn."""

from __future__ import annotations

import mmap
import os
import select
import socket
import sys
import time
import traceback
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

from kvmd.errors import KvmError, Reason, error
from kvmd.images import registry
from kvmd.images.base import File, Files, Image, Indexed
from kvmd.worker.cache import PageCache
from kvmd.worker.fast import Client, Reader
from kvmd.worker.methods import METHODS, Data
from kvmd.worker.protocol import (
    CURSOR,
    HEADER,
    MAX_FILES,
    MAX_PAYLOAD,
    PROGRESS,
    PROGRESS_PAUSE,
    SIZE,
    Kind,
    Opened,
    OpenFrame,
    encode_error,
)  # fmt: skip

MAX_CURSORS = 256
"""The most streams that wait for their client at once."""
MAX_CLIENTS = 128
"""The most clients of the fast path; each takes two descriptors."""
MAX_JOBS = 2
"""The most requests of a client that are worked at, one for each half of its window; nothing more is taken from it."""

ALERT = 100e-6
"""How long, in seconds, a client's next request is looked for before it is waited for."""

OpenImage = Callable[[Files], Image]
Answer = tuple[Kind, *tuple[Data, ...]]
"""A frame: its kind, and the pieces of its payload."""


def _opened(image: Image) -> Answer:
    return Kind.RESULT, Opened(image.kernel_name(), image.foreign()).encode()


def _mapped(fd: int) -> memoryview:
    return memoryview(mmap.mmap(fd, 0, prot=mmap.PROT_READ))


class Loop:
    """Answers one daemon over one socket, and clients that it sends over theirs."""

    def __init__(self, sock: socket.socket, open_image: OpenImage) -> None:
        self._sock = sock
        self._open_image = open_image
        self._image: Image | None = None
        self._reader: Reader | None = None
        self._streams: dict[int, Iterator[Data]] = {}
        self._numbers = count(1)
        self._clients: dict[int, Client] = {}
        self._jobs: deque[tuple[Client, Iterator[None]]] = deque()
        self._poll = select.poll()
        self._alert = 0.0
        self._given = {
            Kind.GRANT: self._grant,
            Kind.CACHE: self._cache,
            Kind.INDEX: self._index,
            Kind.MAKE: self._make,
        }
        self._told = 0.0

    def run(self, protections: Sequence[str] = (), ahead: Iterable[None] = ()) -> None:
        """Serve until end of file, or until memory runs out.

        :param protections: what the process has given up, for the daemon's log.
        :param ahead: what is done, a step at a time, until somebody asks for something.
        """
        self._send(Kind.READY, ", ".join(protections).encode())
        daemon = self._sock.fileno()
        self._poll.register(daemon, select.POLLIN)
        self._use_time(ahead)
        try:
            while all(self._serve() if fd == daemon else self._take(fd) for fd in self._ready()):
                # Each that has asked got its turn; small requests are answered by now.
                if self._jobs and not self._rest():
                    self._step(*self._jobs.popleft())
        except MemoryError:  # of a client's request: what is left after that can't be relied on
            sys.stderr.write("out of memory (limits.worker_memory)\n")
        finally:
            for client in self._clients.values():
                client.close()

    def _use_time(self, ahead: Iterable[None]) -> None:
        """Do what can be done ahead, after as long a wait as the start took: a daemon that starts, too, goes first."""
        if not self._poll.poll(time.process_time() * 1000):
            for _ in ahead:
                if self._poll.poll(0):
                    break

    def _ready(self) -> list[int]:
        """Wait for whoever asks; only look if there is something to do now.

        Who reads one thing after the other asks again at once, and to be woken takes several times as long as to look:
        so after an answer to a client this looks for a little while.
        """
        while self._jobs or time.perf_counter() < self._alert:
            ready = self._poll.poll(self._rest() * 1e3)
            if ready or self._jobs:
                return [fd for fd, _ in ready]
            os.sched_yield()
        return [fd for fd, _ in self._poll.poll()]

    def _rest(self) -> float:
        """For how many seconds what is left to do is left, unless somebody asks for something."""
        return self._reader.pace.rest(len(self._clients)) if self._jobs and self._reader is not None else 0.0

    def _take(self, fd: int) -> bool:
        """Begin with a client's request: a small one is done with that."""
        client = self._clients[fd]
        job = client.take(self._reader) if self._reader is not None else None
        if job is None:
            self._drop(client)
            return True
        client.jobs += 1
        if client.jobs == MAX_JOBS:
            self._poll.unregister(fd)
        self._step(client, job)
        return True

    def _step(self, client: Client, job: Iterator[None]) -> None:
        """Do some of what a client has asked for."""
        try:
            next(job)
            self._jobs.append((client, job))
        except StopIteration:
            if client.jobs == MAX_JOBS:
                self._poll.register(client, select.POLLIN)
            client.jobs -= 1
        except OSError:
            self._drop(client)
        self._alert = time.perf_counter() + ALERT

    def _drop(self, client: Client) -> None:
        """Do no more for a client."""
        if client.jobs < MAX_JOBS:
            self._poll.unregister(client)
        self._jobs = deque(each for each in self._jobs if each[0] is not client)
        del self._clients[client.fileno()]
        client.close()

    def _serve(self) -> bool:
        """Answer one frame of the daemon's.

        :returns: whether to go on.
        """
        if (request := self._receive()) is None:
            return False
        failure: KvmError | None = None
        try:
            answer = self._answer(*request)
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
        # After running out of memory, what is left can't be relied on.
        return failure is None or failure.reason is not Reason.WORKER_MEMORY

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

    def _send(self, kind: Kind, *payload: Data) -> None:
        # Not by sendmsg(2), which would let a worker that was taken over hand its files to a client (seccomp.py).
        self._sock.sendall(HEADER.pack(kind, sum(map(len, payload))))
        for piece in payload:
            self._sock.sendall(piece)

    def _answer(self, kind: Kind, payload: bytes, fds: list[int]) -> Answer:
        if kind is Kind.OPEN:
            return self._open(OpenFrame.decode(payload), fds)
        if kind is Kind.CALL:
            return self._call(payload)
        if kind in self._given:
            return self._given[kind](payload, fds)
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
        files = Files(core, execfile, swap, names.writable, names.kind, one, names.dump_offset, names.any_swap)
        files = files._replace(progress=self._tell)
        self._image = self._open_image(files)
        self._reader = Reader(self._image)
        if isinstance(self._image, Indexed) and self._image.build_id:
            return Kind.INDEX, self._image.build_id.encode("ascii")
        return _opened(self._image)

    def _index(self, _payload: bytes, fds: list[int]) -> Answer:
        """Look names up by this index, if there is one."""
        if self._image is None:
            raise error(Reason.INTERNAL, "no image is open")
        for fd in fds:
            if isinstance(self._image, Indexed):
                self._image.use_index(_mapped(fd))
            os.close(fd)
        return _opened(self._image)

    @staticmethod
    def _make(_payload: bytes, fds: list[int]) -> Answer:
        """Make an index: of what was read from a dump, in a process that has seen nothing else."""
        (fd,) = fds
        return Kind.RESULT, registry.make_index(_mapped(fd))

    def _tell(self, done: int, of: int) -> None:
        """Tell the daemon how far the opening has come, now and then."""
        if (now := time.monotonic()) - self._told >= PROGRESS_PAUSE:
            self._told = now
            self._send(Kind.PROGRESS, PROGRESS.pack(done, of))

    def _grant(self, _payload: bytes, fds: list[int]) -> Answer:
        """Take a client on."""
        if len(fds) != 2:  # the limit of open files cuts what comes in
            for fd in fds:
                os.close(fd)
            raise error(Reason.WORKER_LIMIT, "the image's worker has too many files open")
        sock, window = socket.socket(fileno=fds[0]), fds[1]
        try:
            if len(self._clients) >= MAX_CLIENTS:
                raise error(Reason.WORKER_LIMIT, f"{MAX_CLIENTS} clients read this image directly", limit=MAX_CLIENTS)
            client = Client(sock, window)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(window)
        self._clients[client.fileno()] = client
        self._poll.register(client.fileno(), select.POLLIN)
        return Kind.RESULT, b""

    def _cache(self, payload: bytes, fds: list[int]) -> Answer:
        """Keep pages there from now on, or nowhere."""
        for fd in fds:
            if self._reader is not None:
                self._reader.cache = PageCache(fd, *SIZE.unpack(payload))
            os.close(fd)
        if not fds and self._reader is not None:
            self._reader.cache = None
        return Kind.RESULT, b""

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

    def _pull(self, cursor: int, stream: Iterator[Data]) -> Answer:
        """The next message of a stream; a stream that ends or fails is forgotten."""
        message = next(stream, None)
        if message is None:
            return Kind.END, b""
        self._streams[cursor] = stream
        return Kind.ITEM, CURSOR.pack(cursor), message
