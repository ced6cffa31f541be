"""Where audit records go: standard error, a file, the journal. A sink takes a record whole or raises OSError.

Sources: systemd's "Native Journal Protocol" (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/); sd_journal_print(3) for
names of fields; systemd.exec(5) for JOURNAL_STREAM.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Protocol

JOURNAL = "/run/systemd/journal/socket"
_NOTICE = 5

Record = Mapping[str, object]


class Sink(Protocol):
    """One place for records."""

    def write(self, record: Record) -> None:
        """Write a record down.

        :raises OSError: if it isn't, or not whole.
        """

    def close(self) -> None:
        """Write no more."""


def line(record: Record) -> bytes:
    """A record as a line of JSON, in which every control character is escaped: a name can't forge a line."""
    return json.dumps(record).encode() + b"\n"


class LineSink:
    """Lines on a descriptor: one write(2) a record, so that lines never mix."""

    def __init__(self, fd: int, prefix: bytes = b"") -> None:
        self._fd, self._prefix, self._torn = fd, prefix, False

    def write(self, record: Record) -> None:
        """See :class:`Sink`. What a full disk has cut off stays a line of its own, and takes no other with it."""
        rest = (b"\n" if self._torn else b"") + self._prefix + line(record)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
            self._torn = bool(rest)

    def close(self) -> None:
        """See :class:`Sink`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class FileSink:
    """A file that is appended to, and left when its name stands for another: rotation needs no signal."""

    def __init__(self, path: str) -> None:
        """Open the file.

        :raises OSError: if it can't be.
        """
        self._path = path
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY
        fd = os.open(self._path, flags, 0o600)
        found = os.fstat(fd)
        self._file, self._lines = (found.st_dev, found.st_ino), LineSink(fd)

    def write(self, record: Record) -> None:
        """See :class:`Sink`."""
        try:
            found = os.stat(self._path)
            moved = (found.st_dev, found.st_ino) != self._file
        except FileNotFoundError:
            moved = True
        if moved:
            old = self._lines
            self._open()
            old.close()
        self._lines.write(record)

    def close(self) -> None:
        """See :class:`Sink`."""
        self._lines.close()


class JournalSink:
    """Entries of the journal: MESSAGE is the line of JSON, and each fact is a field KVMD_... of its own."""

    def __init__(self, path: str = JOURNAL) -> None:
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        with suppress(OSError):  # the kernel's limit, then
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 << 20)

    def write(self, record: Record) -> None:
        """See :class:`Sink`. A journal that takes no more at once is one that can't be written to."""
        message = line(record).decode().rstrip()
        fields = {"MESSAGE": message, "PRIORITY": str(_NOTICE), "SYSLOG_IDENTIFIER": "kvmd"}
        for key, value in record.items():
            if value is not None:
                fields[f"KVMD_{key.upper()}"] = value if isinstance(value, str) else json.dumps(value)
        self._sock.sendto(b"".join(_field(name, value) for name, value in fields.items()), self._path)

    def close(self) -> None:
        """See :class:`Sink`."""
        self._sock.close()


def _field(name: str, value: str) -> bytes:
    """A field with its length, in which line breaks mean nothing."""
    data = value.encode("utf-8", "backslashreplace")
    return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"


def stderr_is_journal(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard error is the journal's stream that systemd made for this service."""
    found = os.fstat(2)
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"


def chosen(path: str, journal: bool | None) -> list[Sink]:
    """The sinks of the configuration's ``[audit]``; standard error, if it names none.

    :raises OSError: if one can't be opened.
    """
    sinks: list[Sink] = [FileSink(path)] if path else []
    if journal or (journal is None and stderr_is_journal()):
        sinks.append(JournalSink())
    return sinks or [LineSink(os.dup(2), b"audit: ")]
