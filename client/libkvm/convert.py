"""Messages of the wire to records: one function for all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvmd.v1 import error_pb2
from libkvm.errors import KvmError, from_wire

R = TypeVar("R")


def record(cls: type[R], message: Message) -> R:
    """Make a record of a message, field by field."""
    kinds: tuple[Any, Any] = cls, type(message)
    getters: tuple[Callable[[Any], object], ...] = _getters(*kinds)
    return cls(*[getter(message) for getter in getters])


@functools.cache
def _getters(cls: Any, message: Any) -> tuple[Callable[[Any], object], ...]:
    return tuple(
        _getter(message.DESCRIPTOR.fields_by_name, field.metadata.get("wire", field.name), field.metadata)
        for field in dataclasses.fields(cls)
    )


def _getter(fields: Any, path: str, how: Mapping[str, Any]) -> Callable[[Any], object]:
    name, _, rest = path.partition(".")
    field: FieldDescriptor = fields[name]
    get: Callable[[Any], object]
    if rest:
        inside: Any = field.message_type
        inner = _getter(inside.fields_by_name, rest, how)

        def get(message: Any) -> object:
            return inner(getattr(message, name))
    else:
        convert = _conversion(field, how)

        def get(message: Any) -> object:
            return convert(getattr(message, name))

    if not field.has_presence:
        return get
    return lambda message: get(message) if message.HasField(name) else None


def _conversion(field: FieldDescriptor, how: Mapping[str, Any]) -> Callable[[Any], object]:
    convert: Callable[[Any], object] = _same
    if "record" in how:
        convert = functools.partial(record, how["record"])
    elif field.type == FieldDescriptor.TYPE_BYTES and "raw" not in how:
        convert = text
    elif field.enum_type is not None:
        convert = functools.partial(_word, field.enum_type)
    elif field.message_type is error_pb2.Error.DESCRIPTOR:
        convert = failure
    if field.is_repeated:
        return lambda values: tuple(map(convert, values))
    return convert


def _same(value: object) -> object:
    return value


def _word(enum: Any, number: int) -> str:
    """Answer an enum value's own word: ``kallsyms`` for SYMBOL_SOURCE_KALLSYMS."""
    value = enum.values_by_number.get(number)
    shared = len(enum.values_by_number[0].name) - len("UNSPECIFIED")
    return value.name[shared:].lower() if value else str(number)


def text(value: bytes) -> str:
    """Decode bytes of the kernel's: UTF-8, what is not as surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")


def failure(message: error_pb2.Error) -> KvmError:
    """Rebuild an error that travelled in band."""
    return from_wire(message.reason, message.message, message.metadata)
