from kvmd.v1 import bounds_pb2 as _bounds_pb2
from kvmd.v1 import error_pb2 as _error_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ProcessFilter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROCESS_FILTER_UNSPECIFIED: _ClassVar[ProcessFilter]
    PROCESS_FILTER_ALL: _ClassVar[ProcessFilter]
    PROCESS_FILTER_PID: _ClassVar[ProcessFilter]
    PROCESS_FILTER_PGRP: _ClassVar[ProcessFilter]
    PROCESS_FILTER_SESSION: _ClassVar[ProcessFilter]
    PROCESS_FILTER_TTY: _ClassVar[ProcessFilter]
    PROCESS_FILTER_UID: _ClassVar[ProcessFilter]
    PROCESS_FILTER_RUID: _ClassVar[ProcessFilter]
    PROCESS_FILTER_GID: _ClassVar[ProcessFilter]
    PROCESS_FILTER_RGID: _ClassVar[ProcessFilter]
    PROCESS_FILTER_KTHREAD: _ClassVar[ProcessFilter]

class StringsKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STRINGS_KIND_UNSPECIFIED: _ClassVar[StringsKind]
    STRINGS_KIND_ARGUMENTS: _ClassVar[StringsKind]
    STRINGS_KIND_ENVIRONMENT: _ClassVar[StringsKind]
PROCESS_FILTER_UNSPECIFIED: ProcessFilter
PROCESS_FILTER_ALL: ProcessFilter
PROCESS_FILTER_PID: ProcessFilter
PROCESS_FILTER_PGRP: ProcessFilter
PROCESS_FILTER_SESSION: ProcessFilter
PROCESS_FILTER_TTY: ProcessFilter
PROCESS_FILTER_UID: ProcessFilter
PROCESS_FILTER_RUID: ProcessFilter
PROCESS_FILTER_GID: ProcessFilter
PROCESS_FILTER_RGID: ProcessFilter
PROCESS_FILTER_KTHREAD: ProcessFilter
STRINGS_KIND_UNSPECIFIED: StringsKind
STRINGS_KIND_ARGUMENTS: StringsKind
STRINGS_KIND_ENVIRONMENT: StringsKind

class GetProcsRequest(_message.Message):
    __slots__ = ("descriptor", "filter", "argument", "threads", "arguments")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    ARGUMENT_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    filter: ProcessFilter
    argument: int
    threads: bool
    arguments: bool
    def __init__(self, descriptor: _Optional[str] = ..., filter: _Optional[_Union[ProcessFilter, str]] = ..., argument: _Optional[int] = ..., threads: _Optional[bool] = ..., arguments: _Optional[bool] = ...) -> None: ...

class Strings(_message.Message):
    __slots__ = ("values", "error")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[bytes]
    error: _error_pb2.Error
    def __init__(self, values: _Optional[_Iterable[bytes]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class Process(_message.Message):
    __slots__ = ("pid", "tgid", "ppid", "pgid", "sid", "uid", "gid", "euid", "egid", "state", "nice", "start_time_ns", "rss_bytes", "vsz_bytes", "comm", "kernel_thread", "task_address", "num_threads", "tty", "arguments")
    PID_FIELD_NUMBER: _ClassVar[int]
    TGID_FIELD_NUMBER: _ClassVar[int]
    PPID_FIELD_NUMBER: _ClassVar[int]
    PGID_FIELD_NUMBER: _ClassVar[int]
    SID_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    EUID_FIELD_NUMBER: _ClassVar[int]
    EGID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    START_TIME_NS_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    VSZ_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    KERNEL_THREAD_FIELD_NUMBER: _ClassVar[int]
    TASK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_THREADS_FIELD_NUMBER: _ClassVar[int]
    TTY_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
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
    rss_bytes: int
    vsz_bytes: int
    comm: bytes
    kernel_thread: bool
    task_address: int
    num_threads: int
    tty: int
    arguments: Strings
    def __init__(self, pid: _Optional[int] = ..., tgid: _Optional[int] = ..., ppid: _Optional[int] = ..., pgid: _Optional[int] = ..., sid: _Optional[int] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., euid: _Optional[int] = ..., egid: _Optional[int] = ..., state: _Optional[str] = ..., nice: _Optional[int] = ..., start_time_ns: _Optional[int] = ..., rss_bytes: _Optional[int] = ..., vsz_bytes: _Optional[int] = ..., comm: _Optional[bytes] = ..., kernel_thread: _Optional[bool] = ..., task_address: _Optional[int] = ..., num_threads: _Optional[int] = ..., tty: _Optional[int] = ..., arguments: _Optional[_Union[Strings, _Mapping]] = ...) -> None: ...

class GetProcsResponse(_message.Message):
    __slots__ = ("processes",)
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    processes: _containers.RepeatedCompositeFieldContainer[Process]
    def __init__(self, processes: _Optional[_Iterable[_Union[Process, _Mapping]]] = ...) -> None: ...

class GetStringsRequest(_message.Message):
    __slots__ = ("descriptor", "kind", "pid", "max_bytes_read")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    kind: StringsKind
    pid: int
    max_bytes_read: int
    def __init__(self, descriptor: _Optional[str] = ..., kind: _Optional[_Union[StringsKind, str]] = ..., pid: _Optional[int] = ..., max_bytes_read: _Optional[int] = ...) -> None: ...

class GetStringsResponse(_message.Message):
    __slots__ = ("strings",)
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    strings: Strings
    def __init__(self, strings: _Optional[_Union[Strings, _Mapping]] = ...) -> None: ...
