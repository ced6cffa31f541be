"""The running kernel's files: with the opener, all that opens privileged nodes. No name here is a client's."""

from __future__ import annotations

from collections.abc import Iterator

from kvmd.errors import Reason, error
from kvmd.images.base import Kind
from kvmd.opener import OpenedFile


def open_files(kind: Kind, writable: bool) -> Iterator[tuple[str, OpenedFile]]:
    """Open what an image of the running kernel is made of, each with its role; the caller closes them.

    :raises KvmError: LOCKDOWN, NO_LIVE_SOURCE, SOURCE_ACCESS.
    """
    raise error(Reason.UNSUPPORTED, f"{kind} is not served by this version", writable=writable)
    yield
