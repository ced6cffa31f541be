"""Requests against the bounds that the .proto files write beside their fields."""

from __future__ import annotations

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


Request = TypeVar("Request", bound=Message)


def parse(kind: type[Request], raw: bytes) -> Request:
    """The request message in ``raw``, within its bounds.

    :raises KvmError: FIELD_OUT_OF_BOUNDS, naming field and bound; BAD_ARGUMENT for bytes that are no such message.
    """
    try:
        request = kind.FromString(raw)
    except DecodeError:
        raise error(Reason.BAD_ARGUMENT, f"not a {kind.DESCRIPTOR.full_name}") from None
    for check in _checks(kind.DESCRIPTOR):
        check(request)
    return request
