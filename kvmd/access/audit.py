"""The audit record: one JSON line an event, never contents of memory, never a descriptor id in clear."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from typing import Protocol

log = logging.getLogger(__name__)


class Who(Protocol):
    """What a record says of a peer: front.Peer has it."""

    @property
    def identity(self) -> str: ...  # noqa: D102
    @property
    def gid(self) -> int: ...  # noqa: D102
    @property
    def pid(self) -> int: ...  # noqa: D102
    @property
    def exe(self) -> str | None: ...  # noqa: D102


def tag(descriptor: str) -> str:
    """A name for a descriptor that can be written down: it can't be turned back into the id."""
    return hashlib.sha256(descriptor.encode()).hexdigest()[:12]


class Audit:
    """Appends records to a file, or to standard error. A record is written before the answer goes out.

    JSON escapes every control character, so a name can't forge a line; one write(2) a record with
    O_APPEND, so lines never mix.

    A sink that takes no more (a full disk) raises nothing: whoever must not go on without a record asks
    :meth:`record` whether there is one, and everybody else finishes what they have begun.
    """

    def __init__(self, path: str = "") -> None:
        """Open the sink.

        :param path: a file to append to; empty: standard error.
        :raises OSError: if it can't be opened.
        """
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600) if path else os.dup(2)
        self._prefix = b"" if path else b"audit: "
        self._torn = False

    def record(self, event: str, who: Who, **facts: object) -> bool:
        """Write one record: ``event`` is open, denied or close.

        :returns: whether it is written; if not, the log says why.
        """
        line = {
            "time": time.time(), "event": event,
            "peer": who.identity, "gid": who.gid, "pid": who.pid, "exe": who.exe, **facts,
        }  # fmt: skip
        return self._write(self._prefix + json.dumps(line).encode() + b"\n")

    def _write(self, line: bytes) -> bool:
        # What a full disk has cut off stays a line of its own, so that the next record is not lost with it.
        rest = b"\n" + line if self._torn else line
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
                self._torn = bool(rest)
        except OSError as failure:
            log.error("an audit record is lost: %s", failure.strerror)
            return False
        return True

    def close(self) -> None:
        """Close the sink; what is recorded after that is lost."""
        fd, self._fd = self._fd, -1
        os.close(fd)
