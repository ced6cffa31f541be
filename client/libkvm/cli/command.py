"""What a command of kvmctl is."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from libkvm.errors import KvmError
from libkvm.kernel import Kernel


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a command found.

    :ivar document: printed with ``--json``.
    :ivar lines: printed without; bytes are written as they are.
    :ivar failures: what could not be found; reported after the rest, and the exit status is then 1.
    """

    document: Mapping[str, object]
    lines: Iterable[str | bytes]
    failures: Sequence[KvmError] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """A command.

    :ivar help: one line, for ``--help``.
    :ivar arguments: adds its arguments to the parser.
    :ivar run: does it; raises KvmError.
    """

    help: str
    run: Callable[[Kernel, argparse.Namespace], Answer]
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None


@dataclasses.dataclass(frozen=True, slots=True)
class Tool:
    """A command that looks into no image.

    :ivar help: one line, for ``--help``.
    :ivar run: does it; raises KvmError.
    :ivar arguments: adds its arguments to the parser.
    """

    help: str
    run: Callable[[argparse.Namespace], Answer]
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None


TLS = {
    "ca": "for dns:///: the authority of the daemon's certificate",
    "cert": "your own certificate",
    "key": "its private key",
}
"""The options of certificates, without ``--tls-``."""


def certificates(options: argparse.Namespace) -> dict[str, Any]:
    """Answer connect()'s keywords for what the command line says of certificates."""
    return {f"tls_{word}": getattr(options, f"tls_{word}") for word in TLS}


def number(text: str) -> int:
    """Parse a number that is not negative: decimal, or hexadecimal with 0x."""
    value = int(text, 0)
    if value < 0:
        raise ValueError(text)
    return value


def fields(record: object) -> dict[str, object]:
    """Answer a record's fields by name."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # type: ignore[arg-type]


def dumps(document: Mapping[str, object]) -> str:
    """Render a document as JSON; undecodable bytes of a string are lone surrogates in it."""
    return json.dumps(document, indent=1, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, KvmError):
        return {"reason": value.reason.value, "message": value.message, "address": value.address}
    if isinstance(value, bytes):
        return value.hex()
    return fields(value)
