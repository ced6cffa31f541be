"""How a client comes to its link: a ticket by RPC, handed in over the daemon's other socket."""

from __future__ import annotations

import array
import contextlib
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable

from kvmd.fast import ENDED, TICKET
from libkvm.calls import GET_TICKET
from libkvm.daemon import Daemon
from libkvm.errors import KvmError, UnavailableError
from libkvm.fast.link import Link
from libkvm.fast.pages import Pages
from libkvm.session import Session

_PATIENCE = 5.0
_MOST_FDS = 3
_AGAIN = 1.0
"""After so many seconds a link that broke may be replaced."""

_all: weakref.WeakSet[Direct] = weakref.WeakSet()


def nothing(_address: int, _length: int) -> bytes | None:
    """Read from no cache at all."""
    return None


class Direct:
    """The link of one opened image: made when it is first needed, and anew if it was revoked and granted again.

    :ivar cached: reads from the page cache; None for what isn't there.
    """

    def __init__(self, session: Session, daemon: Daemon) -> None:
        self.cached: Callable[[int, int], bytes | None] = nothing
        self._session, self._daemon = session, daemon
        self._link: Link | None = None
        self._wanted = True
        self._joined = -math.inf
        self._turn = threading.Lock()
        session.attached.add(self)
        _all.add(self)

    def drop(self) -> None:
        """Have no link any more: the image or its client is closed."""
        self.cached, self._wanted = nothing, False
        if (link := self._link) is not None:
            link.drop()

    def forget(self) -> None:
        """The same in a child of fork(2), whose parent has the link still, and may have been at it."""
        self.cached, self._wanted, self._turn = nothing, False, threading.Lock()
        if (link := self._link) is not None:
            link.forget()

    def link(self, descriptor: str) -> Link | None:
        """Answer the link of a descriptor; None if there is none."""
        link = self._link
        if link is not None and link.open:
            return link
        return self._join(descriptor) if self._wanted and not self._daemon.ended else None

    def _join(self, descriptor: str) -> Link | None:
        with self._turn:
            if self._link is not None and self._link.open:
                return self._link
            if not self._wanted or time.monotonic() < self._joined + _AGAIN:
                return None
            self.cached = nothing
            self._link = link = join(self._session, descriptor)
            self._joined = time.monotonic()
            if link is None:
                self._wanted = False
            elif link.pages is not None:
                self.cached = link.pages.read
            if not self._wanted:  # closed meanwhile
                self.drop()
            return link


def join(session: Session, descriptor: str) -> Link | None:
    """Make a link for a descriptor; None if there is to be none: the daemon says why when it is asked for the read.

    :raises UnavailableError: the daemon, or the image's worker, is gone: a read would say so, or wait for another.
    """
    if not session.local:
        return None
    try:
        answer = session.unary(GET_TICKET, GET_TICKET.request(descriptor=descriptor), min(session.timeout, _PATIENCE))
        return _hand_in(answer.socket, answer.ticket) if len(answer.ticket) == TICKET else None
    except UnavailableError:
        raise
    except (KvmError, OSError, ValueError):
        return None


def _hand_in(path: str, ticket: bytes) -> Link | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door, contextlib.ExitStack() as stack:
        door.settimeout(_PATIENCE)
        door.connect(path)
        door.send(ticket)
        room = array.array("i", [0] * _MOST_FDS).itemsize * _MOST_FDS
        _, messages, _, _ = door.recvmsg(1, socket.CMSG_LEN(room), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _level, _kind, data in messages:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        for fd in fds:
            stack.callback(os.close, fd)
        return _made(fds) if len(fds) >= 2 else None


def _made(fds: array.array[int]) -> Link:
    """Of duplicates; the caller closes the originals."""
    window = Link.map(fds[1])
    ended = memoryview(window)[ENDED : ENDED + 8].cast("Q")
    pages = Pages(fds[2], os.fstat(fds[2]).st_size, ended) if len(fds) > 2 else None
    sock = socket.socket(fileno=os.dup(fds[0]))
    sock.setblocking(True)
    return Link(sock, window, pages)


def _after_fork() -> None:
    for direct in list(_all):
        direct.forget()


os.register_at_fork(after_in_child=_after_fork)
