"""The frames between daemon and worker: one request, one answer, in turn, on a stream socketpair.

A frame is a header of two little-endian u32 (kind, payload length) and the payload. The daemon sends:

========= ============================================= ==================================
frame     payload                                       answer
========= ============================================= ==================================
OPEN      JSON (:class:`OpenFrame`), descriptors along  PROGRESS, INDEX, RESULT (:class:`Opened`) or ERROR
INDEX     the memory of an index, if there is one       RESULT (:class:`Opened`) or ERROR
MAKE      the memory of what an index is made of        RESULT (the index) or ERROR
CALL      method name, NUL, request message             RESULT, ITEM, END or ERROR
NEXT      cursor, u32                                   ITEM, END or ERROR
DROP      cursor, u32                                   END
GRANT     socket and window of a client (kvmd.fast)     RESULT or ERROR
CACHE     size of a page cache, u64; its memory, if any RESULT
========= ============================================= ==================================

PROGRESS, bytes done and of how many (u64 each), may come any number of times before OPEN's RESULT or ERROR.
INDEX, as an answer, names a kernel's build (hexadecimal digits), the index of which would help: the daemon sends it, or
INDEX without. READY comes unasked, before all else, with the protections in force. RESULT
carries the whole answer of a unary call. ITEM carries a cursor (u32) and one message of a
streaming call; NEXT asks for the one after, DROP gives the rest up. ERROR carries a kvmd.v1.Error.

A worker parses what anybody may have made, so the daemon takes its word for what is in the image and for
nothing else: answers have bounds (:data:`MOST_ANSWER`), and an error may not speak for the daemon.
"""

from __future__ import annotations

import json
import os
import struct
from enum import IntEnum
from typing import NamedTuple

from google.protobuf.message import DecodeError

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import Kind as ImageKind
from kvmd.v1 import error_pb2

HEADER = struct.Struct("<II")
CURSOR = struct.Struct("<I")
SIZE = struct.Struct("<Q")
PROGRESS = struct.Struct("<QQ")
PROGRESS_PAUSE = 0.25
"""How often, in seconds, a worker tells of it."""
MAX_PAYLOAD = 64 << 20
"""The longest payload either side accepts."""
WRITABLE = "writable"
"""The worker's argument that makes it one that may write."""
MAX_FILES = 253
"""The most descriptors of an OPEN frame: SCM_MAX_FD of Linux."""


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    CALL = 2
    NEXT = 3
    DROP = 4
    READY = 5
    RESULT = 6
    ITEM = 7
    END = 8
    ERROR = 9
    GRANT = 10
    CACHE = 11
    INDEX = 12
    MAKE = 13
    PROGRESS = 14


MOST_ANSWER = {
    Kind.READY: 4 << 10,
    Kind.RESULT: 24 << 20,
    Kind.ITEM: 8 << 20,
    Kind.END: 0,
    Kind.ERROR: 64 << 10,
    Kind.INDEX: 64,
    Kind.PROGRESS: PROGRESS.size,
}
"""The longest payload that the daemon accepts of each kind; of others it accepts none."""
_MOST_WORD = 64
_MOST_WORDS = 16
_MOST_TEXT = 1024
_MOST_NAME = 4096
"""The longest name of a kernel, in bytes."""

_DAEMONS = {
    Reason.NO_PEER_IDENTITY,
    Reason.NO_SUCH_DESCRIPTOR,
    Reason.DESCRIPTOR_LIMIT,
    Reason.CONNECTION_LIMIT,
    Reason.CALL_LIMIT,
    Reason.STREAM_LIMIT,
    Reason.BYTES_LIMIT,
    Reason.RATE_LIMIT,
    Reason.WORKER_DIED,
    Reason.WORKER_HUNG,
    Reason.WORKER_CPU,
    Reason.WRITES_OFF,
    Reason.SHUTTING_DOWN,
    Reason.DEADLINE,
    Reason.CANCELLED,
    Reason.UNREACHABLE,
}
"""What only the daemon can know: a worker that says so lies."""


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEADER.pack(kind, len(payload)) + payload


class OpenFrame(NamedTuple):
    """What OPEN says of its descriptors.

    :ivar kind: what is opened.
    :ivar files: role and name of each descriptor, in their order: ``core``, ``exec``, ``swap`` (any number), or a
        key of :attr:`kvmd.images.base.Files.extra`.
    :ivar dump_offset: as of :class:`kvmd.images.base.Files`; ``any_swap``, too.
    """

    kind: ImageKind
    files: tuple[tuple[str, str], ...]
    writable: bool = False
    dump_offset: int | None = None
    any_swap: bool = False

    def encode(self) -> bytes:
        """As a payload."""
        return json.dumps([self.kind, self.files, self.writable, self.dump_offset, self.any_swap]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> OpenFrame:
        """From a payload."""
        kind, files, writable, dump_offset, any_swap = json.loads(payload)
        return cls(ImageKind(kind), tuple((role, name) for role, name in files), writable, dump_offset, any_swap)


class Opened(NamedTuple):
    """What OPEN's RESULT says of the image.

    :ivar kernel_name: the name of the namelist.
    :ivar foreign: as :meth:`kvmd.images.base.Image.foreign`.
    :ivar build_id: as of :class:`kvmd.images.base.Indexed`; the daemon's own note, not in the payload.
    """

    kernel_name: str = ""
    foreign: bool = False
    build_id: str = ""

    def encode(self) -> bytes:
        """As a payload: a byte of 0 or 1, and the name."""
        return bytes([self.foreign]) + os.fsencode(self.kernel_name)

    @classmethod
    def decode(cls, payload: bytes) -> Opened:
        """From a payload, of which a name's worth counts."""
        return cls(payload[1 : 1 + _MOST_NAME].decode("utf-8", "replace"), payload[:1] == b"\1")


def encode_error(failure: KvmError) -> error_pb2.Error:
    """The error as a message."""
    return error_pb2.Error(reason=failure.reason.value, message=failure.message, metadata=failure.metadata)


def decode_error(payload: bytes) -> KvmError:
    """The error of an ERROR frame, cut to what a client can be told.

    :raises ValueError: it is no error, or one that only the daemon may give.
    """
    try:
        message = error_pb2.Error.FromString(payload)
    except DecodeError:
        raise ValueError("an ERROR frame that holds none") from None
    reason = Reason(message.reason)
    if reason in _DAEMONS:
        raise ValueError(f"an error of {reason.value}, which only the daemon gives")
    words = sorted(message.metadata.items())[:_MOST_WORDS]
    failure = error(reason, _plain(message.message))
    failure.metadata.update((_plain(key)[:_MOST_WORD], _plain(value)) for key, value in words)
    return failure


def _plain(text: str) -> str:
    """The text, short and with its control characters escaped: it will be written to logs and terminals."""
    text = text[:_MOST_TEXT]
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
