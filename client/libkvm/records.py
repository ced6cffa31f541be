"""What libkvm answers: frozen dataclasses, made from the wire's messages by one function.

A field has the name of the message's field unless its ``wire`` metadata say otherwise. Bytes that the
kernel does not promise to be text decode as UTF-8 with surrogate escapes: ``os.fsencode`` gives them back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvmd.v1 import error_pb2
from libkvm.errors import KvmError, from_wire

R = TypeVar("R")


@dataclasses.dataclass(frozen=True, slots=True)
class Info:
    """Facts about an opened image; what it has no value for is None or empty.

    :ivar format: the name of the format, such as ``kdump-zstd`` or ``elf``.
    :ivar live: whether this is the running kernel.
    :ivar release: uname(2)'s field, as are ``version``, ``machine`` and ``nodename``.
    :ivar banner: the line of /proc/version.
    :ivar page_size: in bytes.
    :ivar kaslr_offset: how far KASLR moved the kernel's virtual addresses.
    :ivar phys_base: the physical address of the kernel's first byte minus its linked one.
    :ivar uptime_ns: nanoseconds since boot when the image was taken.
    :ivar time_ns: the wall clock then, in nanoseconds since 1970.
    :ivar panic_message: the panic's text, if the kernel had panicked.
    :ivar cpus_online: how many CPUs were online.
    :ivar memory_bytes: the pages that the kernel manages, in bytes.
    :ivar taint: the letters of /proc/sys/kernel/tainted; empty if untainted.
    :ivar build_id: the kernel's build id, in hexadecimal digits.
    :ivar paging_levels: levels of page tables.
    :ivar symbols: where symbols come from: ``kallsyms`` or ``execfile``.
    :ivar types: where types come from: ``btf`` or ``dwarf``.
    :ivar load_average: over 1, 5 and 15 minutes.
    """

    format: str
    live: bool
    release: str
    version: str
    machine: str
    nodename: str
    banner: str
    page_size: int
    kaslr_offset: int | None
    phys_base: int | None
    uptime_ns: int | None
    time_ns: int | None
    panic_message: str | None
    cpus_online: int | None
    memory_bytes: int | None
    taint: str | None
    build_id: str | None
    paging_levels: int | None
    symbols: str
    types: str
    load_average: tuple[float, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Symbol:
    """A symbol of the kernel.

    :ivar name: as asked for.
    :ivar value: the address, KASLR included; of a per-CPU symbol the offset.
    :ivar n_type: nlist(3)'s: N_ABS 2, N_TEXT 4, N_DATA 6, N_BSS 8, or-ed with N_EXT 1 if global.
    :ivar size: in bytes; 0 where the source does not know it.
    :ivar source: ``execfile``, ``kallsyms`` or ``vmcoreinfo``.
    :ivar module: the module that holds it; empty for the kernel's own.
    """

    name: str
    value: int
    n_type: int
    size: int
    source: str
    module: str


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process or thread of an image.

    :ivar pid: equals ``tgid`` for a thread group's leader.
    :ivar uid: the real user id, as ``gid`` is the real group id; ``euid`` and ``egid`` are the effective ones.
    :ivar state: one letter as in proc_pid_stat(5).
    :ivar start_time_ns: when it began, in nanoseconds after boot, suspension included.
    :ivar rss_bytes: resident memory; None for a kernel thread and a zombie, as is ``vsz_bytes``.
    :ivar comm: the name, at most 15 bytes.
    :ivar task_address: the address of its struct task_struct.
    :ivar num_threads: how many threads the group has.
    :ivar tty: the controlling terminal's device number, or None.
    :ivar args: the arguments if they were asked for, else None.
    :ivar args_error: why ``args`` is not the whole of them, or None.
    """

    pid: int
    tgid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    gid: int
    euid: int
    egid: int
    state: str
    nice: int
    start_time_ns: int
    rss_bytes: int | None
    vsz_bytes: int | None
    comm: str
    kernel_thread: bool
    task_address: int
    num_threads: int
    tty: int | None
    args: tuple[str, ...] | None = dataclasses.field(metadata={"wire": "arguments.values"})
    args_error: KvmError | None = dataclasses.field(metadata={"wire": "arguments.error"})


@dataclasses.dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the kernel's printk ring buffer.

    :ivar timestamp_ns: nanoseconds since boot.
    :ivar level: syslog(2)'s, 0 (emergency) to 7 (debug).
    :ivar facility: syslog(2)'s.
    :ivar sequence: the record's number.
    :ivar text: without a closing newline.
    :ivar continuation: whether it continues the record before it.
    """

    timestamp_ns: int
    level: int
    facility: int
    sequence: int
    text: str
    continuation: bool


@dataclasses.dataclass(frozen=True, slots=True)
class RangeResult:
    """The outcome of one range of :meth:`libkvm.Kernel.readv`.

    :ivar data: all bytes asked for, or those before the fault.
    :ivar error: why there are no more, or None.
    """

    data: bytes = dataclasses.field(metadata={"raw": True})
    error: KvmError | None


def record(cls: type[R], message: Message) -> R:
    """Make a record of a message, field by field."""
    kinds: tuple[Any, Any] = cls, type(message)
    getters: tuple[Callable[[Any], object], ...] = _getters(*kinds)
    return cls(*[getter(message) for getter in getters])


@functools.cache
def _getters(cls: Any, message: Any) -> tuple[Callable[[Any], object], ...]:
    return tuple(
        _getter(message.DESCRIPTOR.fields_by_name, field.metadata.get("wire", field.name), "raw" in field.metadata)
        for field in dataclasses.fields(cls)
    )


def _getter(fields: Any, path: str, raw: bool) -> Callable[[Any], object]:
    name, _, rest = path.partition(".")
    field: FieldDescriptor = fields[name]
    get: Callable[[Any], object]
    if rest:
        inside: Any = field.message_type
        inner = _getter(inside.fields_by_name, rest, raw)

        def get(message: Any) -> object:
            return inner(getattr(message, name))
    else:
        convert = _conversion(field, raw)

        def get(message: Any) -> object:
            return convert(getattr(message, name))

    if not field.has_presence:
        return get
    return lambda message: get(message) if message.HasField(name) else None


def _conversion(field: FieldDescriptor, raw: bool) -> Callable[[Any], object]:
    convert: Callable[[Any], object] = _same
    if field.type == FieldDescriptor.TYPE_BYTES and not raw:
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
