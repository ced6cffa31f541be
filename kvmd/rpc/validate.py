"""Requests against the bounds that the .proto files write beside their fields."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from kvmd.errors import KvmError, Reason, error
from kvmd.v1 import bounds_pb2

Check = Callable[[Message], None]
MOST_READV_BYTES = 16 << 20
"""What the lengths of one ReadV's ranges may add up to."""
_NEWER = 4096
"""What the fields of a newer client may add to a request."""


def _wrong(field: FieldDescriptor, bound: str, limit: int) -> KvmError:
    message = f"{field.full_name.removeprefix('kvmd.v1.')}: {bound} is at most {limit}"
    return error(Reason.FIELD_OUT_OF_BOUNDS, message, field=field.full_name, bound=bound, limit=limit)


def _options(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions


def _value_checks(field: FieldDescriptor) -> list[Callable[[Any], None]]:
    options, checks = _options(field), list[Callable[[Any], None]]()
    if most_bytes := options[bounds_pb2.max_bytes]:

        def short(value: str | bytes) -> None:
            if len(value.encode() if isinstance(value, str) else value) > most_bytes:
                raise _wrong(field, "length in bytes", most_bytes)

        checks.append(short)
    if most := options[bounds_pb2.max_value]:

        def small(value: int) -> None:
            if value > most:
                raise _wrong(field, "value", most)

        checks.append(small)
    if field.message_type is not None:
        checks += _checks(field.message_type)
    return checks


def _field_check(field: FieldDescriptor) -> Check | None:
    most_items: int = _options(field)[bounds_pb2.max_items]
    checks = _value_checks(field)

    def run(message: Message) -> None:
        values = getattr(message, field.name) if field.is_repeated else (getattr(message, field.name),)
        if most_items and len(values) > most_items:
            raise _wrong(field, "number of items", most_items)
        for value in values:
            for check in checks:
                check(value)

    return run if checks or most_items else None


@cache
def _checks(kind: Descriptor) -> tuple[Check, ...]:
    return tuple(check for field in kind.fields if (check := _field_check(field)) is not None)


def _most_bytes(kind: Descriptor) -> float:
    """The longest that a message within its bounds can be."""
    return sum(_most_of(field) for field in kind.fields)


def _most_of(field: FieldDescriptor) -> float:
    options, head = _options(field), 6  # a tag and a length
    items = (options[bounds_pb2.max_items] or math.inf) if field.is_repeated else 1
    if field.message_type is not None:
        return items * (_most_bytes(field.message_type) + head)
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return items * ((options[bounds_pb2.max_bytes] or math.inf) + head)
    return items * (10 + head)  # a varint of 64 bits


@cache
def _most_raw(kind: Descriptor) -> float:
    return _most_bytes(kind) + _NEWER


Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], raw: bytes) -> Request:
    """The request message in ``raw``, within its bounds.

    :raises KvmError: FIELD_OUT_OF_BOUNDS, naming field and bound; BAD_ARGUMENT for bytes that are no such message.
    """
    if len(raw) > _most_raw(kind.DESCRIPTOR):  # a million empty items take their time to be counted
        name, limit = kind.DESCRIPTOR.full_name, int(_most_raw(kind.DESCRIPTOR))
        message = f"{name.removeprefix('kvmd.v1.')}: length in bytes is at most {limit}"
        raise error(Reason.FIELD_OUT_OF_BOUNDS, message, field=name, bound="length in bytes", limit=limit)
    try:
        request = kind.FromString(raw)
    except DecodeError:
        raise error(Reason.BAD_ARGUMENT, f"not a {kind.DESCRIPTOR.full_name}") from None
    for check in _checks(kind.DESCRIPTOR):
        check(request)
    return request
