"""The frames between daemon and worker: one request, one answer, in turn, on a stream socketpair.

A frame is a header of two little-endian u32 (kind, payload length) and the payload. The daemon sends:

========= ============================================= ==================================
frame     payload                                       answer
========= ============================================= ==================================
OPEN      JSON (:class:`OpenFrame`), descriptors along  RESULT (the kernel's name) or ERROR
CALL      method name, NUL, request message             RESULT, ITEM, END or ERROR
NEXT      cursor, u32                                   ITEM, END or ERROR
DROP      cursor, u32                                   END
========= ============================================= ==================================

READY comes unasked, before all else, with the protections in force. RESULT
carries the whole answer of a unary call. ITEM carries a cursor (u32) and one message of a
streaming call; NEXT asks for the one after, DROP gives the rest up. ERROR carries a kvmd.v1.Error.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum

from kvmd.errors import KvmError, from_wire
from kvmd.images.base import Kind as Image
from kvmd.v1 import error_pb2

HEADER = struct.Struct("<II")
CURSOR = struct.Struct("<I")
MAX_PAYLOAD = 64 << 20
"""The longest payload either side accepts."""
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


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return HEADER.pack(kind, len(payload)) + payload


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """What OPEN says of its descriptors.

    :ivar kind: what is opened.
    :ivar files: role and name of each descriptor, in their order: ``core``, ``exec``, ``swap`` (any number), or a
        key of :attr:`kvmd.images.base.Files.extra`.
    """

    kind: Image
    files: tuple[tuple[str, str], ...]
    writable: bool = False

    def encode(self) -> bytes:
        """As a payload."""
        return json.dumps([self.kind, self.files, self.writable]).encode()

    @classmethod
    def decode(cls, payload: bytes) -> OpenFrame:
        """From a payload."""
        kind, files, writable = json.loads(payload)
        return cls(Image(kind), tuple((role, name) for role, name in files), writable)


def encode_error(failure: KvmError) -> error_pb2.Error:
    """The error as a message."""
    return error_pb2.Error(reason=failure.reason.value, message=failure.message, metadata=failure.metadata)


def decode_error(payload: bytes) -> KvmError:
    """The error of an ERROR frame."""
    message = error_pb2.Error.FromString(payload)
    return from_wire(message.reason, message.message, dict(message.metadata))
