from kvmd.v1 import bounds_pb2 as _bounds_pb2
from kvmd.v1 import error_pb2 as _error_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AddressSpace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADDRESS_SPACE_UNSPECIFIED: _ClassVar[AddressSpace]
    ADDRESS_SPACE_KERNEL: _ClassVar[AddressSpace]
    ADDRESS_SPACE_PHYSICAL: _ClassVar[AddressSpace]
    ADDRESS_SPACE_USER: _ClassVar[AddressSpace]
ADDRESS_SPACE_UNSPECIFIED: AddressSpace
ADDRESS_SPACE_KERNEL: AddressSpace
ADDRESS_SPACE_PHYSICAL: AddressSpace
ADDRESS_SPACE_USER: AddressSpace

class ReadRequest(_message.Message):
    __slots__ = ("descriptor", "address", "length", "space", "pid", "zstd")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    address: int
    length: int
    space: AddressSpace
    pid: int
    zstd: bool
    def __init__(self, descriptor: _Optional[str] = ..., address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ..., pid: _Optional[int] = ..., zstd: _Optional[bool] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("data", "plain_length")
    DATA_FIELD_NUMBER: _ClassVar[int]
    PLAIN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    plain_length: int
    def __init__(self, data: _Optional[bytes] = ..., plain_length: _Optional[int] = ...) -> None: ...

class ReadStreamRequest(_message.Message):
    __slots__ = ("descriptor", "address", "length", "space", "pid", "zstd")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    address: int
    length: int
    space: AddressSpace
    pid: int
    zstd: bool
    def __init__(self, descriptor: _Optional[str] = ..., address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ..., pid: _Optional[int] = ..., zstd: _Optional[bool] = ...) -> None: ...

class ReadStreamResponse(_message.Message):
    __slots__ = ("data", "plain_length")
    DATA_FIELD_NUMBER: _ClassVar[int]
    PLAIN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    plain_length: int
    def __init__(self, data: _Optional[bytes] = ..., plain_length: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("address", "length", "space", "pid")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    address: int
    length: int
    space: AddressSpace
    pid: int
    def __init__(self, address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ..., pid: _Optional[int] = ...) -> None: ...

class ReadVRequest(_message.Message):
    __slots__ = ("descriptor", "ranges", "zstd")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ZSTD_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    zstd: bool
    def __init__(self, descriptor: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., zstd: _Optional[bool] = ...) -> None: ...

class RangeResult(_message.Message):
    __slots__ = ("data", "error", "plain_length")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    PLAIN_LENGTH_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    error: _error_pb2.Error
    plain_length: int
    def __init__(self, data: _Optional[bytes] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., plain_length: _Optional[int] = ...) -> None: ...

class ReadVResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RangeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RangeResult, _Mapping]]] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("descriptor", "address", "data")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    address: int
    data: bytes
    def __init__(self, descriptor: _Optional[str] = ..., address: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class WriteResponse(_message.Message):
    __slots__ = ("written", "error")
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    written: int
    error: _error_pb2.Error
    def __init__(self, written: _Optional[int] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class WalkPagesRequest(_message.Message):
    __slots__ = ("descriptor", "start")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    start: int
    def __init__(self, descriptor: _Optional[str] = ..., start: _Optional[int] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("virtual_address", "physical_address", "length", "protection", "direct_address", "present")
    VIRTUAL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PHYSICAL_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    PROTECTION_FIELD_NUMBER: _ClassVar[int]
    DIRECT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    virtual_address: int
    physical_address: int
    length: int
    protection: int
    direct_address: int
    present: bool
    def __init__(self, virtual_address: _Optional[int] = ..., physical_address: _Optional[int] = ..., length: _Optional[int] = ..., protection: _Optional[int] = ..., direct_address: _Optional[int] = ..., present: _Optional[bool] = ...) -> None: ...

class WalkPagesResponse(_message.Message):
    __slots__ = ("pages",)
    PAGES_FIELD_NUMBER: _ClassVar[int]
    pages: _containers.RepeatedCompositeFieldContainer[Page]
    def __init__(self, pages: _Optional[_Iterable[_Union[Page, _Mapping]]] = ...) -> None: ...
