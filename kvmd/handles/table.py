"""The descriptor table: opaque id to owner and image. Knows nothing of RPC or policy."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from kvmd.access.limits import Quota
from kvmd.errors import KvmError, Reason, error
from kvmd.front.peers import Connection
from kvmd.handles.pool import Entry
from kvmd.images.base import Kind
from kvmd.record import Record


class Descriptor(Record):
    """One open descriptor.

    :ivar id: opaque, unguessable.
    :ivar owner: the identity that opened it, and the only one it exists for.
    :ivar connection: closed with it, or a lease after it.
    :ivar image: the policy's name of the image.
    :ivar kind: what it is.
    :ivar writable: whether it was opened for writing.
    :ivar entry: the image itself.
    :ivar since: when it was opened, in seconds since 1970.
    """

    id: str
    owner: str
    connection: Connection
    image: str
    kind: Kind
    writable: bool
    entry: Entry
    since: float


def unknown() -> KvmError:
    """What a descriptor answers that is unknown, closed, or somebody else's: all the same."""
    return error(Reason.NO_SUCH_DESCRIPTOR, "no such descriptor: it was never opened, is closed, or is not yours")


class Table:
    """All open descriptors."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._open: dict[str, Descriptor] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Descriptor]:
        return iter(list(self._open.values()))

    def room(self, owner: str) -> None:
        """Check before an image is opened that its descriptor will have room.

        :raises KvmError: DESCRIPTOR_LIMIT.
        """
        self._quota.room(owner)

    def add(  # noqa: PLR0913, PLR0917 - what a descriptor is
        self, owner: str, connection: Connection, image: str, kind: Kind, writable: bool, entry: Entry
    ) -> Descriptor:
        """Enter a descriptor for an opened image."""
        self._quota.take(owner)
        id_ = os.urandom(6 + 18).hex()  # six bytes are known to who reads the record: kvmd.access.audit.tag
        descriptor = Descriptor(id_, owner, connection, image, kind, writable, entry, time.time())
        self._open[descriptor.id] = descriptor
        return descriptor

    def get(self, id: str, owner: str) -> Descriptor:  # noqa: A002 - it is what the wire calls it
        """The descriptor of this id.

        :raises KvmError: NO_SUCH_DESCRIPTOR, also where it is somebody else's.
        """
        descriptor = self._open.get(id)
        if descriptor is None or descriptor.owner != owner:
            raise unknown()
        return descriptor

    def move(self, descriptor: Descriptor, connection: Connection) -> Descriptor:
        """Bind a descriptor to another connection of its owner's."""
        moved = self._open[descriptor.id] = descriptor.replace(connection=connection)
        return moved

    def remove(self, descriptor: Descriptor) -> None:
        """Forget a descriptor."""
        if self._open.pop(descriptor.id, None) is None:
            raise unknown()
        self._quota.give(descriptor.owner)

    def of(self, connection: Connection) -> list[Descriptor]:
        """The descriptors of a connection."""
        return [descriptor for descriptor in self._open.values() if descriptor.connection is connection]
