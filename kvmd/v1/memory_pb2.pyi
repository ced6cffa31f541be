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
ADDRESS_SPACE_UNSPECIFIED: AddressSpace
ADDRESS_SPACE_KERNEL: AddressSpace
ADDRESS_SPACE_PHYSICAL: AddressSpace

class ReadRequest(_message.Message):
    __slots__ = ("descriptor", "address", "length", "space")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    address: int
    length: int
    space: AddressSpace
    def __init__(self, descriptor: _Optional[str] = ..., address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ...) -> None: ...

class ReadResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ReadStreamRequest(_message.Message):
    __slots__ = ("descriptor", "address", "length", "space")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    address: int
    length: int
    space: AddressSpace
    def __init__(self, descriptor: _Optional[str] = ..., address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ...) -> None: ...

class ReadStreamResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("address", "length", "space")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    SPACE_FIELD_NUMBER: _ClassVar[int]
    address: int
    length: int
    space: AddressSpace
    def __init__(self, address: _Optional[int] = ..., length: _Optional[int] = ..., space: _Optional[_Union[AddressSpace, str]] = ...) -> None: ...

class ReadVRequest(_message.Message):
    __slots__ = ("descriptor", "ranges")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, descriptor: _Optional[str] = ..., ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class RangeResult(_message.Message):
    __slots__ = ("data", "error")
    DATA_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    error: _error_pb2.Error
    def __init__(self, data: _Optional[bytes] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class ReadVResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[RangeResult]
    def __init__(self, results: _Optional[_Iterable[_Union[RangeResult, _Mapping]]] = ...) -> None: ...
