"""The worker pool: one worker process an image, shared by the descriptors of the same files."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any, NamedTuple, Protocol

from kvmd.access.limits import Quota
from kvmd.errors import KvmError, Reason, error
from kvmd.handles.bounds import Bounds, RunAs
from kvmd.handles.indexes import Indexes, Kept
from kvmd.handles.learning import learn
from kvmd.handles.process import Worker
from kvmd.images.base import Kind, Progress, unheard
from kvmd.tasks import uncancelled
from kvmd.worker.protocol import Opened, OpenFrame

log = logging.getLogger(__name__)

SPARE_DELAY = 2.0
"""How long after an open the next worker is started ahead of its use: not while the open is under way."""
KEEP_DELAY = 4.0
"""How long after an open what was found out about the kernel's build is kept, if a lot had to be."""


class OpenedFile(Protocol):
    """What the pool asks of the opener's result."""

    @property
    def fd(self) -> int: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def stat(self) -> os.stat_result: ...  # noqa: D102


class ImageFiles(NamedTuple):
    """The files of an image as the opener gave them, each with its role (:class:`~kvmd.worker.protocol.OpenFrame`).

    :ivar run_as: the client whose rights the worker must have, for what it sees depends on them; None: nobody's.
    :ivar dump_offset: as of :class:`kvmd.images.base.Files`; ``any_swap``, too.
    """

    kind: Kind
    files: tuple[tuple[str, OpenedFile], ...]
    writable: bool = False
    run_as: RunAs | None = None
    dump_offset: int | None = None
    any_swap: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for the same files, unchanged since, in the same mode; there is one running kernel.

        Its own files don't count: procfs makes their inodes and times anew, and it is read by any of them alike.
        """
        inodes = [
            (role, file.stat.st_dev, file.stat.st_ino, file.stat.st_size, file.stat.st_mtime_ns, file.stat.st_ctime_ns)
            for role, file in self.files
            if self.kind is Kind.DUMP or role in ("exec", "swap")
        ]
        return self.kind, *inodes, self.writable, self.run_as, self.dump_offset, self.any_swap

    @property
    def names(self) -> OpenFrame:
        """What the worker is told of them."""
        named = tuple((role, file.path) for role, file in self.files)
        return OpenFrame(self.kind, named, self.writable, self.dump_offset, self.any_swap)

    @property
    def fds(self) -> list[int]:
        """Their descriptors, in the order of :attr:`names`."""
        return [file.fd for _, file in self.files]


class Entry:
    """An image with its worker, as descriptors hold it."""

    def __init__(
        self,
        key: tuple[object, ...],
        opened: asyncio.Task[tuple[Worker, Opened]],
        owner: str,
        listeners: list[Progress],
    ) -> None:
        """Make an entry that nobody uses yet.

        :param owner: who opened it first: it counts among the workers of this identity.
        :param listeners: who is told how far the opening has come.
        """
        self.key, self.opened, self.owner, self.listeners = key, opened, owner, listeners
        self.since, self.users, self.kept, self.image = time.time(), 0, False, Opened()
        self.retiring: asyncio.TimerHandle | None = None

    @property
    def worker(self) -> Worker:
        """The worker, once :attr:`opened` is done."""
        return self.opened.result()[0]

    def dead(self) -> bool:
        """Whether a new open needs a new worker."""
        if not self.opened.done():
            return False
        return self.opened.cancelled() or self.opened.exception() is not None or self.worker.failure is not None


class Pool:
    """Starts workers, shares them, and ends them when nobody has needed them for a while.

    :ivar bounds: of each worker.
    :ivar ended: how many have ended, by why: a reason, or CLOSED.
    """

    def __init__(self, quota: Quota, bounds: Bounds, *, linger: float, indexes: Indexes | None = None) -> None:
        self._quota, self.bounds, self._linger, self._indexes = quota, bounds, linger, indexes
        self.ended = Counter[str]()
        self._learning: asyncio.Task[bytes | None] | None = None
        self._entries: dict[tuple[object, ...], Entry] = {}
        self._spare: asyncio.Task[Worker] | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._protections = ""

    def _start(self) -> asyncio.Task[Worker]:
        return asyncio.ensure_future(self._started())

    async def _started(self) -> Worker:
        worker = await Worker.start(self.bounds)
        if worker.protections != self._protections:
            self._protections = worker.protections
            log.info("workers run with %s", worker.protections)
        return worker

    def prepare(self) -> None:
        """Start a worker ahead of its use, if none waits: its imports take longer than most opens."""
        if not self._closing and self._spare is None:
            self._spare = self._start()
            self._spare.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _take(self, files: ImageFiles) -> Worker:
        """A worker for these files: the one that waits, or one made for them if they need other rights."""
        if files.run_as is not None or files.writable:
            return await Worker.start(self.bounds, files.run_as, writable=files.writable)
        spare, self._spare = self._spare, None
        if spare is not None:
            try:
                worker = await spare
                if worker.failure is None:
                    return worker
            except KvmError as failure:
                log.warning("a worker started ahead did not come up: %s", failure)
        return await self._start()

    async def _open(self, files: ImageFiles, listeners: list[Progress]) -> tuple[Worker, Opened]:
        def heard(done: int, of: int) -> None:
            for listener in listeners:
                listener(done, of)

        try:
            worker = await self._take(files)
            try:
                return worker, await worker.open(files.names, files.fds, self._find_index, heard)
            except BaseException:
                await worker.close()
                raise
        finally:
            asyncio.get_running_loop().call_later(SPARE_DELAY, self.prepare)

    async def acquire(self, files: ImageFiles, owner: str, progress: Progress = unheard) -> Entry:
        """The image of these files, opened if it isn't yet. The caller keeps and closes ``files``.

        :param owner: who asks.
        :param progress: is told how far the opening has come.
        :raises KvmError: as the image's opening does; WORKER_LIMIT.
        """
        entry = self._entries.get(files.key)
        if entry is not None and entry.dead():
            self._forget(entry)
            if not entry.users:  # else the last of them retires it
                self._retire(entry)
            entry = None
        if entry is None:
            self._make_room(owner)
            self._quota.take(owner)
            listeners: list[Progress] = []
            opened = asyncio.ensure_future(self._open(files, listeners))
            entry = self._entries[files.key] = Entry(files.key, opened, owner, listeners)
        if entry.retiring is not None:
            entry.retiring.cancel()
            entry.retiring = None
        entry.users += 1
        entry.listeners.append(progress)
        try:
            # Not cancelled with the caller: others may be waiting for the same image, and it holds our fds.
            _, entry.image = await uncancelled(entry.opened)
            if self._indexes is not None and entry.users == 1:
                asyncio.get_running_loop().call_later(KEEP_DELAY, lambda: self._run(self._keep(entry)))
        except BaseException:
            self.release(entry)
            raise
        finally:
            entry.listeners.remove(progress)
        return entry

    def _make_room(self, owner: str) -> None:
        """End workers that have been idle for longest, if need be: the owner's own first."""
        if self._closing:
            raise error(Reason.SHUTTING_DOWN, "the daemon is stopping")
        idle = [entry for entry in self._entries.values() if entry.retiring is not None]
        idle.sort(key=lambda entry: (entry.owner != owner, entry.retiring.when() if entry.retiring else 0))
        for entry in idle:
            if self._quota.full(owner) is None:
                break
            self._retire(entry)
        self._quota.room(owner)

    def _forget(self, entry: Entry) -> None:
        """Take an entry out of the table: it counts no more, and a new open gets a new worker."""
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
            self._quota.give(entry.owner)

    def release(self, entry: Entry) -> None:
        """Give an image back; its worker is ended a while after the last one."""
        entry.users -= 1
        if entry.users:
            return
        if entry.dead() or self._linger <= 0 or self._closing:
            self._retire(entry)
        else:
            entry.retiring = asyncio.get_running_loop().call_later(self._linger, self._retire, entry)

    def _retire(self, entry: Entry) -> None:
        if entry.retiring is not None:
            entry.retiring.cancel()
            entry.retiring = None
        self._forget(entry)
        self._run(self._end(entry))

    async def _find_index(self, build_id: str) -> Kept | None:
        return await asyncio.to_thread(self._indexes.find, build_id) if self._indexes else None

    async def _keep(self, entry: Entry) -> None:
        """Keep an index of a kernel's build, if one was missed. One is made at a time; others wait for another open."""
        if self._indexes is None or self._closing or entry.kept or entry.dead() or not entry.image.build_id:
            return
        if self._learning is not None:
            return
        self._learning = asyncio.ensure_future(learn(entry.worker, self.bounds))
        try:
            if (index := await self._learning) is not None:
                entry.kept = True
                await asyncio.to_thread(self._indexes.keep, entry.image.build_id, index)
        except (KvmError, OSError) as failure:
            log.warning("no index is kept of build %s: %s", entry.image.build_id, str(failure) or "it takes too long")
        except asyncio.CancelledError:
            if not self._closing:
                raise
        finally:
            self._learning = None

    async def _end(self, entry: Entry) -> None:
        try:
            worker, _ = await entry.opened
        except (KvmError, asyncio.CancelledError):
            return
        await self._keep(entry)
        self.ended[worker.failure.reason.value if worker.failure else "CLOSED"] += 1
        await worker.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def entries(self) -> list[Entry]:
        """The images that are open."""
        return [entry for entry in self._entries.values() if entry.opened.done() and not entry.dead()]

    async def close(self) -> None:
        """End every worker."""
        self._closing = True
        if self._learning is not None:
            self._learning.cancel()
        for entry in list(self._entries.values()):
            entry.opened.cancel()
            self._retire(entry)
        if self._spare is not None:
            self._spare.cancel()
            self._run(self._end_spare(self._spare))
        await asyncio.gather(*self._background, return_exceptions=True)

    @staticmethod
    async def _end_spare(spare: asyncio.Task[Worker]) -> None:
        try:
            worker = await spare
        except (KvmError, asyncio.CancelledError):
            return
        await worker.close()
