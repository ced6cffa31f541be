from kvmd.v1 import bounds_pb2 as _bounds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SymbolSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SYMBOL_SOURCE_UNSPECIFIED: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_EXECFILE: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_KALLSYMS: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_VMCOREINFO: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_SCAN: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_BTF: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_CODE: _ClassVar[SymbolSource]
    SYMBOL_SOURCE_CONTENT: _ClassVar[SymbolSource]
SYMBOL_SOURCE_UNSPECIFIED: SymbolSource
SYMBOL_SOURCE_EXECFILE: SymbolSource
SYMBOL_SOURCE_KALLSYMS: SymbolSource
SYMBOL_SOURCE_VMCOREINFO: SymbolSource
SYMBOL_SOURCE_SCAN: SymbolSource
SYMBOL_SOURCE_BTF: SymbolSource
SYMBOL_SOURCE_CODE: SymbolSource
SYMBOL_SOURCE_CONTENT: SymbolSource

class NlistRequest(_message.Message):
    __slots__ = ("descriptor", "names")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, descriptor: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class Symbol(_message.Message):
    __slots__ = ("name", "found", "value", "n_type", "size", "source", "module")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    N_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    name: str
    found: bool
    value: int
    n_type: int
    size: int
    source: SymbolSource
    module: str
    def __init__(self, name: _Optional[str] = ..., found: _Optional[bool] = ..., value: _Optional[int] = ..., n_type: _Optional[int] = ..., size: _Optional[int] = ..., source: _Optional[_Union[SymbolSource, str]] = ..., module: _Optional[str] = ...) -> None: ...

class NlistResponse(_message.Message):
    __slots__ = ("symbols",)
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedCompositeFieldContainer[Symbol]
    def __init__(self, symbols: _Optional[_Iterable[_Union[Symbol, _Mapping]]] = ...) -> None: ...
