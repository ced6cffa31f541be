"""The fast path's control: who gets a ticket, and what is given for it, within the policy and on the record."""

from __future__ import annotations

import logging
import os

from kvmd.access.audit import tag
from kvmd.errors import KvmError, Reason, error
from kvmd.front.peer import Peer
from kvmd.front.peers import Connection
from kvmd.grants import Grants
from kvmd.sessions import Sessions
from kvmd.tasks import uncancelled

log = logging.getLogger(__name__)

_VERBS = ("read",)


class Direct:
    """Tickets and what they bring.

    :ivar door: the path of the socket where they are handed in; empty if there is none.
    """

    def __init__(self, sessions: Sessions, grants: Grants) -> None:
        self._sessions, self._grants = sessions, grants
        self.door = ""

    def ticket(self, caller: Connection, id: str) -> bytes:  # noqa: A002 - it is what the wire calls it
        """Give out a ticket for reading the caller's descriptor directly.

        :raises KvmError: POLICY_DENIED, NO_SUCH_DESCRIPTOR, UNSUPPORTED, DESCRIPTOR_LIMIT.
        """
        descriptor = self._sessions.admit(caller, id, _VERBS)
        if not self.door:
            raise error(Reason.UNSUPPORTED, "this daemon has no fast path")
        return self._grants.ticket(caller, descriptor)

    async def redeem(self, ticket: bytes, peer: Peer) -> list[int]:
        """Take a ticket back.

        :returns: file descriptors for the peer, which the caller closes; none if there is nothing to be had for it.
        """
        known = self._grants.redeem(ticket, peer)
        if known is None:
            return []
        caller, descriptor = known
        try:
            self._sessions.admit(caller, descriptor.id, _VERBS)
            fds = await uncancelled(self._grants.give(descriptor, caller.peer))
        except (KvmError, OSError) as failure:
            log.info("no fast path for %s: %s", caller.peer.identity, failure)
            return []
        try:
            self._sessions.admit(caller, descriptor.id, _VERBS)  # which may have changed meanwhile
            if not self._sessions.note("grant", caller, image=descriptor.image, descriptor=tag(descriptor.id)):
                raise error(Reason.INTERNAL, "a grant can't be put on the audit record")
        except KvmError as failure:
            log.info("no fast path for %s: %s", caller.peer.identity, failure)
            self._grants.end(descriptor)
            for fd in fds:
                os.close(fd)
            return []
        return fds
