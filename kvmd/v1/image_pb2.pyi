from kvmd.v1 import bounds_pb2 as _bounds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetInfoRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class Info(_message.Message):
    __slots__ = ("format", "live", "release", "version", "machine", "nodename", "banner", "page_size", "kaslr_offset", "phys_base", "uptime_ns", "time_ns", "panic_message", "cpus_online", "memory_bytes", "taint", "build_id", "paging_levels", "symbols", "types", "load_average")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MACHINE_FIELD_NUMBER: _ClassVar[int]
    NODENAME_FIELD_NUMBER: _ClassVar[int]
    BANNER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    KASLR_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PHYS_BASE_FIELD_NUMBER: _ClassVar[int]
    UPTIME_NS_FIELD_NUMBER: _ClassVar[int]
    TIME_NS_FIELD_NUMBER: _ClassVar[int]
    PANIC_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CPUS_ONLINE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    TAINT_FIELD_NUMBER: _ClassVar[int]
    BUILD_ID_FIELD_NUMBER: _ClassVar[int]
    PAGING_LEVELS_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    LOAD_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    format: str
    live: bool
    release: str
    version: str
    machine: str
    nodename: str
    banner: str
    page_size: int
    kaslr_offset: int
    phys_base: int
    uptime_ns: int
    time_ns: int
    panic_message: str
    cpus_online: int
    memory_bytes: int
    taint: str
    build_id: str
    paging_levels: int
    symbols: str
    types: str
    load_average: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, format: _Optional[str] = ..., live: _Optional[bool] = ..., release: _Optional[str] = ..., version: _Optional[str] = ..., machine: _Optional[str] = ..., nodename: _Optional[str] = ..., banner: _Optional[str] = ..., page_size: _Optional[int] = ..., kaslr_offset: _Optional[int] = ..., phys_base: _Optional[int] = ..., uptime_ns: _Optional[int] = ..., time_ns: _Optional[int] = ..., panic_message: _Optional[str] = ..., cpus_online: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., taint: _Optional[str] = ..., build_id: _Optional[str] = ..., paging_levels: _Optional[int] = ..., symbols: _Optional[str] = ..., types: _Optional[str] = ..., load_average: _Optional[_Iterable[float]] = ...) -> None: ...

class GetInfoResponse(_message.Message):
    __slots__ = ("info",)
    INFO_FIELD_NUMBER: _ClassVar[int]
    info: Info
    def __init__(self, info: _Optional[_Union[Info, _Mapping]] = ...) -> None: ...

class GetLogRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("timestamp_ns", "level", "facility", "sequence", "text", "continuation")
    TIMESTAMP_NS_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    FACILITY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CONTINUATION_FIELD_NUMBER: _ClassVar[int]
    timestamp_ns: int
    level: int
    facility: int
    sequence: int
    text: bytes
    continuation: bool
    def __init__(self, timestamp_ns: _Optional[int] = ..., level: _Optional[int] = ..., facility: _Optional[int] = ..., sequence: _Optional[int] = ..., text: _Optional[bytes] = ..., continuation: _Optional[bool] = ...) -> None: ...

class GetLogResponse(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    def __init__(self, records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ...) -> None: ...

class GetDumpHeaderRequest(_message.Message):
    __slots__ = ("descriptor", "memory_bytes")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    memory_bytes: int
    def __init__(self, descriptor: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class GetDumpHeaderResponse(_message.Message):
    __slots__ = ("header", "device_bytes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    header: bytes
    device_bytes: int
    def __init__(self, header: _Optional[bytes] = ..., device_bytes: _Optional[int] = ...) -> None: ...
