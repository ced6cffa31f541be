"""Who reads an image directly: tickets, what is given for them, and how it is taken back.

A ticket is good once, for some seconds, for the process that asked for it. What it brings lasts as long as the
descriptor, and the policy: the daemon keeps a duplicate of the client's socket, and ends it by shutdown(2).
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from typing import NamedTuple

from kvmd import fast
from kvmd.access.limits import Quota
from kvmd.errors import Reason, error
from kvmd.front.peer import Peer
from kvmd.front.peers import Connection
from kvmd.handles.pages import PageCaches
from kvmd.handles.process import Worker
from kvmd.handles.shared import Shared
from kvmd.handles.table import Descriptor
from kvmd.images.base import Kind
from kvmd.record import Record

TICKET_SECONDS = 5.0

_ENDED = struct.Struct("<Q")

Allowed = Callable[[Peer, str], bool]
"""Whether the policy lets a peer read an image."""


class _Ticket(NamedTuple):
    descriptor: Descriptor
    caller: Connection
    expires: float


class _Grant:
    """What a client has been given.

    :param notes: the last page of its window.
    :ivar counted: requests and bytes that have been told already.
    """

    def __init__(self, descriptor: Descriptor, peer: Peer, sock: socket.socket, notes: mmap.mmap) -> None:
        self.descriptor, self.peer, self.sock, self.notes = descriptor, peer, sock, notes
        self.counted = 0, 0

    def counts(self) -> tuple[int, int]:
        """How many requests there were since the last time, and how many bytes they brought, as the worker has it."""
        now = fast.COUNTS.unpack_from(self.notes)
        new = max(0, now[0] - self.counted[0]), max(0, now[1] - self.counted[1])
        self.counted = now
        return new

    def end(self) -> None:
        """Take it back."""
        _ENDED.pack_into(self.notes, fast.ENDED - fast.NOTES, 1)
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        self.notes.close()


class _Pages(Record):
    """A worker's page cache, and all who have ever been given the one in use: they may have it mapped still."""

    caches: PageCaches
    holders: set[tuple[Peer, str]]


class Grants:
    """All tickets and grants.

    :param quota: of grants: with each go memory for the window, and a place in the worker.
    :param page_cache: what the page cache of a dump may take in bytes, 0 for none.
    """

    def __init__(self, quota: Quota, page_cache: int) -> None:
        self._quota, self._page_cache = quota, page_cache
        self._tickets: dict[bytes, _Ticket] = {}
        self._grants: dict[str, _Grant] = {}
        self._left: dict[str, tuple[int, int]] = {}
        self._pages: dict[Worker, _Pages] = {}
        self._dropping: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._grants)

    def ticket(self, caller: Connection, descriptor: Descriptor) -> bytes:
        """Give out a ticket.

        :raises KvmError: UNSUPPORTED for who has come from afar, or what has no memory; DESCRIPTOR_LIMIT.
        """
        if caller.peer.cert is not None or caller.peer.pid <= 0 or descriptor.kind is Kind.PROCFS:
            raise error(Reason.UNSUPPORTED, "there is no fast path for this client and image")
        waiting = sum(each.descriptor.owner == descriptor.owner for each in self._tickets.values())
        self._quota.room(descriptor.owner, waiting + (descriptor.id not in self._grants))
        ticket = os.urandom(fast.TICKET)
        self._tickets[ticket] = _Ticket(descriptor, caller, time.monotonic() + TICKET_SECONDS)
        asyncio.get_running_loop().call_later(TICKET_SECONDS, self._tickets.pop, ticket, None)
        return ticket

    def redeem(self, ticket: bytes, peer: Peer) -> tuple[Connection, Descriptor] | None:
        """Take a ticket back, whoever has it.

        :returns: who got it, and what it is good for; None if it isn't, or not in these hands.
        """
        known = self._tickets.pop(ticket, None)
        if known is None or time.monotonic() >= known.expires or known.caller.closed:
            return None
        asked = known.caller.peer
        same = (asked.uid, asked.pid, asked.start_time) == (peer.uid, peer.pid, peer.start_time)
        return (known.caller, known.descriptor) if same else None

    async def give(self, descriptor: Descriptor, peer: Peer) -> list[int]:
        """Connect a client to its worker. Not to be cancelled.

        :returns: the client's socket, its window, and the page cache if there is one: for the caller to close.
        :raises KvmError: the worker is gone, or has no place left; DESCRIPTOR_LIMIT.
        :raises OSError: no descriptor is left.
        """
        self.end(descriptor)
        self._quota.take(descriptor.owner)
        try:
            return await self._give(descriptor, peer)
        except BaseException:
            self._quota.give(descriptor.owner)
            raise

    async def _give(self, descriptor: Descriptor, peer: Peer) -> list[int]:
        worker = descriptor.entry.worker
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, ExitStack() as stack:
            stack.callback(ours.close)
            cache = await self._cache(descriptor, peer)
            window = stack.enter_context(closing(Shared("kvmd-window", fast.WINDOW)))
            notes = window.map(fast.NOTES, fast.PAGE)
            stack.callback(notes.close)
            await worker.grant(theirs.fileno(), window.fd)
            window.seal()
            given = _duplicates([ours.fileno(), window.fd, *([cache.fd] if cache else [])])
            stack.pop_all()
        window.close()
        self._grants[descriptor.id] = _Grant(descriptor, peer, ours, notes)
        return given

    async def _cache(self, descriptor: Descriptor, peer: Peer) -> Shared | None:
        if descriptor.kind is not Kind.DUMP:
            return None
        worker = descriptor.entry.worker
        if worker not in self._pages:
            self._pages[worker] = _Pages(PageCaches(worker, self._page_cache), set())
            worker.when_ended(lambda: self._ended(worker))
        pages = self._pages[worker]
        cache = await pages.caches.current()
        pages.holders.add((_who(peer), descriptor.image))
        return cache

    def _ended(self, worker: Worker) -> None:
        self._pages.pop(worker).caches.close()
        self._end_those(partial(_is_of, worker))

    def counts(self, descriptor: Descriptor) -> tuple[int, int]:
        """How many requests came directly since the last time, and how many bytes they brought."""
        left = self._left.pop(descriptor.id, (0, 0))
        new = grant.counts() if (grant := self._grants.get(descriptor.id)) is not None else (0, 0)
        return left[0] + new[0], left[1] + new[1]

    def end(self, descriptor: Descriptor) -> None:
        """Take back what was given for a descriptor, if there is anything; :meth:`counts` has its last counts then."""
        counts = self.counts(descriptor)
        grant = self._grants.pop(descriptor.id, None)
        if grant is not None:
            self._left[descriptor.id] = counts
            self._quota.give(descriptor.owner)
            grant.end()

    def review(self, allowed: Allowed) -> None:
        """Have the policy judge anew: end what it allows no more."""
        for worker, pages in self._pages.items():
            if not all(allowed(peer, image) for peer, image in pages.holders):
                pages.holders.clear()
                # Those who may stay come back with a new ticket, for the new cache.
                self._end_those(partial(_is_of, worker))
                self._dropping.add(task := asyncio.ensure_future(pages.caches.retire()))
                task.add_done_callback(self._dropping.discard)
        self._end_those(lambda grant: not allowed(grant.peer, grant.descriptor.image))

    def _end_those(self, which: Callable[[_Grant], bool]) -> None:
        for grant in list(filter(which, self._grants.values())):
            self.end(grant.descriptor)

    def close(self) -> None:
        """Take everything back."""
        for grant in list(self._grants.values()):
            self.end(grant.descriptor)
        for pages in self._pages.values():
            pages.caches.close()


def _who(peer: Peer) -> Peer:
    """All of a peer that the policy looks at, the same for all of its processes."""
    return Peer(peer.uid, peer.gid, 0, peer.groups)


def _duplicates(fds: list[int]) -> list[int]:
    made: list[int] = []
    try:
        made.extend(map(os.dup, fds))
    except BaseException:
        for fd in made:
            os.close(fd)
        raise
    return made


def _is_of(worker: Worker, grant: _Grant) -> bool:
    return grant.descriptor.entry.worker is worker
