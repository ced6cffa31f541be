"""The descriptor table: opaque id to owner and image. Knows nothing of RPC or policy."""

from __future__ import annotations

import secrets
from collections.abc import Hashable
from dataclasses import dataclass

from kvmd.errors import KvmError, Reason, error
from kvmd.handles.pool import Entry
from kvmd.images.base import Kind


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One open descriptor.

    :ivar id: opaque, unguessable.
    :ivar owner: the identity that opened it, and the only one it exists for.
    :ivar connection: closed with it.
    :ivar image: the policy's name of the image.
    :ivar kind: what it is.
    :ivar writable: whether it was opened for writing.
    :ivar entry: the image itself.
    """

    id: str
    owner: str
    connection: Hashable
    image: str
    kind: Kind
    writable: bool
    entry: Entry


def unknown() -> KvmError:
    """What a descriptor answers that is unknown, closed, or somebody else's: all the same."""
    return error(Reason.NO_SUCH_DESCRIPTOR, "no such descriptor: it was never opened, is closed, or is not yours")


class Table:
    """All open descriptors."""

    def __init__(self, *, most: int, most_per_owner: int) -> None:
        self._most, self._most_per_owner = most, most_per_owner
        self._open: dict[str, Descriptor] = {}
        self._owned: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def room(self, owner: str) -> None:
        """Check before an image is opened that its descriptor will have room.

        :raises KvmError: DESCRIPTOR_LIMIT.
        """
        for limit, key, used in (
            (self._most, "limits.descriptors", len(self._open)),
            (self._most_per_owner, "limits.descriptors_per_uid", self._owned.get(owner, 0)),
        ):
            if used >= limit:
                message = f"{limit} descriptors are open already ({key}); close some"
                raise error(Reason.DESCRIPTOR_LIMIT, message, limit=limit)

    def add(  # noqa: PLR0913, PLR0917 - what a descriptor is
        self, owner: str, connection: Hashable, image: str, kind: Kind, writable: bool, entry: Entry
    ) -> Descriptor:
        """Enter a descriptor for an opened image."""
        self.room(owner)
        descriptor = Descriptor(secrets.token_urlsafe(18), owner, connection, image, kind, writable, entry)
        self._open[descriptor.id] = descriptor
        self._owned[owner] = self._owned.get(owner, 0) + 1
        return descriptor

    def get(self, id: str, owner: str) -> Descriptor:  # noqa: A002 - it is what the wire calls it
        """The descriptor of this id.

        :raises KvmError: NO_SUCH_DESCRIPTOR, also where it is somebody else's.
        """
        descriptor = self._open.get(id)
        if descriptor is None or descriptor.owner != owner:
            raise unknown()
        return descriptor

    def remove(self, descriptor: Descriptor) -> None:
        """Forget a descriptor."""
        if self._open.pop(descriptor.id, None) is None:
            raise unknown()
        self._owned[descriptor.owner] -= 1
        if not self._owned[descriptor.owner]:
            del self._owned[descriptor.owner]

    def of(self, connection: Hashable) -> list[Descriptor]:
        """The descriptors of a connection."""
        return [descriptor for descriptor in self._open.values() if descriptor.connection is connection]
