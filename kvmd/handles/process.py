"""The daemon's end of one worker process: start it, ask it, notice its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeAlias

from kvmd.errors import AccessError, KvmError, Reason, error
from kvmd.handles.bounds import Bounds, RunAs
from kvmd.handles.indexes import Kept
from kvmd.images.base import Progress, unheard
from kvmd.worker.protocol import (
    CURSOR,
    HEADER,
    MOST_ANSWER,
    PROGRESS,
    PROGRESS_PAUSE,
    SIZE,
    WRITABLE,
    Kind,
    Opened,
    OpenFrame,
    decode_error,
    frame,
)  # fmt: skip

log = logging.getLogger(__name__)

Exchange: TypeAlias = "asyncio.Task[tuple[Kind, bytearray]]"

FindIndex: TypeAlias = "Callable[[str], Awaitable[Kept | None]]"

LOG_CHUNK = 4096
LOG_PAUSE = 0.05
_ANSWER = 1 << 20  # what a stream's pieces have: the fewer parts they come in, the less there is to do
LONGEST_OPEN = 3600.0
"""How long an open may take, in seconds, if the worker goes on telling how far it has come."""
START_SECONDS = 30.0
"""How long a worker may take to import and to give up its privileges."""


def _ending(status: int) -> str:
    """How a process ended, from its wait status as subprocess has it."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:  # most real-time signals have no name
        return f"signal {-status}"


def _nobody_asks(exchange: Exchange) -> None:
    """Take note of a failure whose caller may have been cancelled: or asyncio would log that nobody did."""
    if not exchange.cancelled():
        exchange.exception()


async def _spawn(arguments: Sequence[str]) -> tuple[asyncio.subprocess.Process, socket.socket]:
    """A worker process and our end of its socket."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ANSWER)  # as much as net.core.wmem_max lets it be
    try:
        with theirs:
            ours.setblocking(False)
            # -P: the current directory may be anybody's.
            command = [sys.executable, "-P", "-m", "kvmd.worker", str(theirs.fileno()), *arguments]
            # Its standard streams are open, so that no dump becomes one of them and is written to by accident.
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
    except BaseException:
        ours.close()
        raise
    return process, ours


class Worker:
    """A worker process. One request is under way at a time; further ones wait their turn."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket, patience: float) -> None:
        self._process = process
        self._sock = sock
        self._patience = patience
        self._turn = asyncio.Lock()
        self._exit = asyncio.ensure_future(self._watch())
        self._dropping: set[asyncio.Task[None]] = set()
        self.failure: KvmError | None = None
        self.protections = ""

    @classmethod
    async def start(cls, bounds: Bounds, run_as: RunAs | None = None, *, writable: bool = False) -> Worker:
        """Start a process and wait until it has given up its privileges.

        :param run_as: whose rights it has; None: nobody's.
        :param writable: whether it may write to a file that it is given.
        :raises KvmError: WORKER_DIED, WORKER_HUNG.
        """
        helpers = 0 if writable or run_as is not None else bounds.helpers  # only dumps have use for them
        arguments = [str(word) for word in (bounds.memory, bounds.cpu, helpers, os.getpid())]
        if writable:
            arguments.append(WRITABLE)
        if run_as is not None:
            arguments.append(run_as.encode())
        try:
            process, ours = await _spawn(arguments)
        except OSError as failure:
            log.error("a worker process can't be started: %s", failure)
            raise error(Reason.WORKER_DIED, "a worker process can't be started; the daemon's log says why") from None
        worker = cls(process, ours, bounds.patience)
        try:
            async with asyncio.timeout(START_SECONDS):
                _, protections = await worker._answer()
                worker.protections = protections.decode("ascii")
        except BaseException as failure:
            worker.failure = worker.failure or error(Reason.WORKER_DIED, "a worker process did not start; see the log")
            await worker.close()
            if isinstance(failure, OSError | ValueError):
                raise worker.why() from failure
            raise
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def _watch(self) -> None:
        await self._relay_log()
        status = await self._process.wait()
        if self.failure is None:
            how = _ending(status)
            if status == -signal.SIGXCPU:
                message = "the image's worker process has used up its processor time (limits.worker_cpu); open it again"
                self.failure = error(Reason.WORKER_CPU, message, key="worker_cpu")
            else:
                message = f"the image's worker process ended by {how}; open the image again"
                self.failure = error(Reason.WORKER_DIED, message)
            log.warning("worker %d ended by %s", self.pid, how)

    async def _relay_log(self) -> None:
        """Put what the worker says on standard error in the daemon's log, until it ends; a flood of it waits."""
        stream = self._process.stderr
        while stream is not None and (chunk := await stream.read(LOG_CHUNK)):
            log.warning("worker %d: %s", self.pid, chunk.decode("utf-8", "replace").rstrip())
            if self.failure is None:
                await asyncio.sleep(LOG_PAUSE)

    def why(self) -> KvmError:
        """Why the worker answers no more, as an error of its own for each call."""
        known = self.failure or error(Reason.WORKER_DIED, "the image's worker process ended; open the image again")
        return type(known)(known.reason, known.message, known.metadata)

    def kill(self, failure: KvmError) -> None:
        """End the process now; ``failure`` is what its descriptors answer from here on."""
        self.failure = self.failure or failure
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End the process and wait for its end."""
        self.kill(error(Reason.SHUTTING_DOWN, "the image's worker process was stopped"))
        try:
            await asyncio.shield(self._exit)
        finally:
            self._sock.close()

    async def _receive(self, length: int) -> bytearray:
        buffer = bytearray(length)
        view, loop, done = memoryview(buffer), asyncio.get_running_loop(), 0
        while done < length:
            count = await loop.sock_recv_into(self._sock, view[done:])
            if not count:
                raise ConnectionResetError("end of file from the worker")
            done += count
        return buffer

    async def _answer(self) -> tuple[Kind, bytearray]:
        number, length = HEADER.unpack(await self._receive(HEADER.size))
        kind = Kind(number)
        if length > MOST_ANSWER.get(kind, -1):
            raise ConnectionAbortedError(f"a frame of kind {kind} and {length} bytes")
        return kind, await self._receive(length)

    async def _last_answer(self, limit: asyncio.Timeout, progress: Progress) -> tuple[Kind, bytearray]:
        """The answer after those that tell of progress, each of which shows that the worker hangs not."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + LONGEST_OPEN
        while (answer := await self._answer())[0] is Kind.PROGRESS:
            if progress is unheard or len(answer[1]) != PROGRESS.size:
                raise ValueError("progress of what makes none")
            progress(*PROGRESS.unpack(answer[1]))
            await asyncio.sleep(PROGRESS_PAUSE / 2)  # a flood of it waits
            limit.reschedule(min(loop.time() + self._patience, latest))
        return answer

    async def _exchange(self, request: bytes, fds: Sequence[int], progress: Progress) -> tuple[Kind, bytearray]:
        """One request and its answer, in a turn that the caller has taken and this gives back."""
        failure: KvmError | None = None
        try:
            if self.failure is not None:
                raise self.why()
            async with asyncio.timeout(self._patience) as limit:
                if fds:  # a small frame into an empty socket: never blocks, never is cut
                    socket.send_fds(self._sock, [request], fds)
                else:
                    await asyncio.get_running_loop().sock_sendall(self._sock, request)
                kind, payload = await self._last_answer(limit, progress)
            if kind is Kind.ERROR:
                failure = decode_error(bytes(payload))
        except TimeoutError:
            message = f"the image's worker did not answer in {self._patience:g} s and was ended; open the image again"
            self.kill(error(Reason.WORKER_HUNG, message))
            raise self.why() from None
        except (OSError, ValueError, MemoryError) as broken:
            # It closed its socket or broke the protocol: no second chance, but time to die of its own cause.
            log.warning("worker %d is given up: %s", self.pid, broken)
            asyncio.get_running_loop().call_later(0.2, self.kill, self.why())
            await asyncio.shield(self._exit)
            raise self.why() from None
        finally:
            self._turn.release()
        if failure is None:
            return kind, payload
        if failure.reason is Reason.WORKER_MEMORY:
            self.kill(failure)
        try:
            raise failure
        finally:
            del failure  # or the traceback and this frame would keep each other, and the answers of frames above

    async def _request(self, request: bytes, fds: Sequence[int] = (), progress: Progress = unheard) -> Exchange:
        """Send a request as soon as it is its turn.

        A caller who is cancelled before that leaves nothing behind; after it, the answer is awaited all
        the same, so that the next caller does not get it.
        """
        await self._turn.acquire()
        exchange = asyncio.ensure_future(self._exchange(request, fds, progress))
        exchange.add_done_callback(_nobody_asks)
        return exchange

    async def open(
        self,
        names: OpenFrame,
        fds: Sequence[int],
        find: FindIndex | None = None,
        progress: Progress = unheard,
    ) -> Opened:
        """Hand the files over, and the index of the kernel's build.

        :param find: finds that, by a build id.
        :param progress: is told how far it has come.
        :returns: what there is to say of the image.
        :raises KvmError: as the image's opening does.
        """
        build_id = ""
        try:
            sent = await self._request(frame(Kind.OPEN, names.encode()), fds, progress)
            kind, payload = await asyncio.shield(sent)
            if kind is Kind.INDEX:
                build_id = payload.decode("ascii", "replace")
                index = await find(build_id) if find else None
                with index or contextlib.nullcontext():
                    given = [index.fd] if index else []
                    _, payload = await asyncio.shield(await self._request(frame(Kind.INDEX), given))
        except AccessError:  # the daemon has allowed the open, and would put on record that it has not
            log.warning("worker %d is given up: it denies an open", self.pid)
            self.kill(error(Reason.WORKER_DIED, "the image's worker process broke the rules and was ended"))
            raise self.why() from None
        return Opened.decode(bytes(payload))._replace(build_id=build_id)

    async def make(self, inputs: int) -> bytes:
        """Have an index made, by a worker that was given nothing before.

        :raises KvmError: CORRUPT_DATA, or the worker's end.
        """
        _, payload = await asyncio.shield(await self._request(frame(Kind.MAKE), [inputs]))
        return bytes(payload)

    async def grant(self, sock: int, window: int) -> None:
        """Give the worker a client of the fast path: a socket, and the window. Not to be cancelled.

        :raises KvmError: WORKER_LIMIT.
        """
        await (await self._request(frame(Kind.GRANT), [sock, window]))

    async def cache(self, fd: int | None, size: int) -> None:
        """Give the worker memory to keep pages in, instead of what it has; None: none. Not to be cancelled."""
        await (await self._request(frame(Kind.CACHE, SIZE.pack(size)), [] if fd is None else [fd]))

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` run once the process has ended."""
        self._exit.add_done_callback(lambda _: callback())

    async def call(self, method: str, request: bytes) -> bytes:
        """A unary call: request message in, answer message out, put together where it comes in pieces.

        :raises KvmError: as the call does; WORKER_DIED for an answer without end.
        """
        sent = await self._request(frame(Kind.CALL, method.encode() + b"\0" + request))
        kind, payload = await asyncio.shield(sent)
        if kind is not Kind.ITEM:
            return bytes(payload)
        whole = bytearray()
        async with aclosing(self._pieces(sent)) as pieces:
            async for piece in pieces:
                whole += piece
                if len(whole) > MOST_ANSWER[Kind.RESULT]:
                    log.warning("worker %d is given up: an answer of %d bytes and more", self.pid, len(whole))
                    self.kill(error(Reason.WORKER_DIED, "the image's worker process broke the rules and was ended"))
                    raise self.why()
        return bytes(whole)

    async def stream(self, method: str, request: bytes) -> AsyncGenerator[bytes, None]:
        """A streaming call. The worker makes the next message while the caller deals with this one."""
        sent = await self._request(frame(Kind.CALL, method.encode() + b"\0" + request))
        async with aclosing(self._pieces(sent)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(self, following: Exchange) -> AsyncGenerator[bytes, None]:
        """What a worker's answers hold, from the first on, as long as they are items."""
        try:
            while True:
                kind, payload = await asyncio.shield(following)
                if kind is not Kind.ITEM:
                    return
                following = asyncio.ensure_future(self._next(bytes(payload[: CURSOR.size])))
                piece = bytes(memoryview(payload)[CURSOR.size :])
                del payload  # it may be long until the piece is taken
                yield piece
        finally:
            following.add_done_callback(self._drop)

    async def _next(self, cursor: bytes) -> tuple[Kind, bytearray]:
        return await (await self._request(frame(Kind.NEXT, cursor)))

    def _drop(self, last: Exchange) -> None:
        """Tell the worker that nobody wants the rest of a stream, if there is one."""
        if last.cancelled() or last.exception() is not None or last.result()[0] is not Kind.ITEM:
            return
        payload = last.result()[1]

        async def drop() -> None:
            with contextlib.suppress(KvmError):
                await (await self._request(frame(Kind.DROP, bytes(payload[: CURSOR.size]))))

        self._dropping.add(task := asyncio.ensure_future(drop()))
        task.add_done_callback(self._dropping.discard)
