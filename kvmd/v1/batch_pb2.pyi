from kvmd.v1 import bounds_pb2 as _bounds_pb2
from kvmd.v1 import error_pb2 as _error_pb2
from kvmd.v1 import memory_pb2 as _memory_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WalkListRequest(_message.Message):
    __slots__ = ("descriptor", "head", "link", "next", "offset", "length", "limit")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    head: int
    link: int
    next: int
    offset: int
    length: int
    limit: int
    def __init__(self, descriptor: _Optional[str] = ..., head: _Optional[int] = ..., link: _Optional[int] = ..., next: _Optional[int] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListElement(_message.Message):
    __slots__ = ("address", "data", "error")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    address: int
    data: bytes
    error: _error_pb2.Error
    def __init__(self, address: _Optional[int] = ..., data: _Optional[bytes] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class WalkListResponse(_message.Message):
    __slots__ = ("elements", "more")
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[ListElement]
    more: bool
    def __init__(self, elements: _Optional[_Iterable[_Union[ListElement, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class ReadCStringsRequest(_message.Message):
    __slots__ = ("descriptor", "addresses", "max_length", "space", "pid")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    addresses: _containers.RepeatedScalarFieldContainer[int]
    max_length: int
    space: _memory_pb2.AddressSpace
    pid: int
    def __init__(self, descriptor: _Optional[str] = ..., addresses: _Optional[_Iterable[int]] = ..., max_length: _Optional[int] = ..., space: _Optional[_Union[_memory_pb2.AddressSpace, str]] = ..., pid: _Optional[int] = ...) -> None: ...

class CString(_message.Message):
    __slots__ = ("data", "whole", "error")
    DATA_FIELD_NUMBER: _ClassVar[int]
    WHOLE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    whole: bool
    error: _error_pb2.Error
    def __init__(self, data: _Optional[bytes] = ..., whole: _Optional[bool] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class ReadCStringsResponse(_message.Message):
    __slots__ = ("strings",)
    STRINGS_FIELD_NUMBER: _ClassVar[int]
    strings: _containers.RepeatedCompositeFieldContainer[CString]
    def __init__(self, strings: _Optional[_Iterable[_Union[CString, _Mapping]]] = ...) -> None: ...
