from kvmd.v1 import bounds_pb2 as _bounds_pb2
from kvmd.v1 import error_pb2 as _error_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_KIND_UNSPECIFIED: _ClassVar[FrameKind]
    FRAME_KIND_CALL: _ClassVar[FrameKind]
    FRAME_KIND_INTERRUPTED: _ClassVar[FrameKind]
    FRAME_KIND_INLINE: _ClassVar[FrameKind]
    FRAME_KIND_FOUND: _ClassVar[FrameKind]

class StackEnd(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STACK_END_UNSPECIFIED: _ClassVar[StackEnd]
    STACK_END_BOTTOM: _ClassVar[StackEnd]
    STACK_END_USER: _ClassVar[StackEnd]
    STACK_END_NO_UNWIND: _ClassVar[StackEnd]
    STACK_END_FAULT: _ClassVar[StackEnd]
    STACK_END_CORRUPT: _ClassVar[StackEnd]
    STACK_END_LIMIT: _ClassVar[StackEnd]
    STACK_END_NO_STACK: _ClassVar[StackEnd]
FRAME_KIND_UNSPECIFIED: FrameKind
FRAME_KIND_CALL: FrameKind
FRAME_KIND_INTERRUPTED: FrameKind
FRAME_KIND_INLINE: FrameKind
FRAME_KIND_FOUND: FrameKind
STACK_END_UNSPECIFIED: StackEnd
STACK_END_BOTTOM: StackEnd
STACK_END_USER: StackEnd
STACK_END_NO_UNWIND: StackEnd
STACK_END_FAULT: StackEnd
STACK_END_CORRUPT: StackEnd
STACK_END_LIMIT: StackEnd
STACK_END_NO_STACK: StackEnd

class GetStackRequest(_message.Message):
    __slots__ = ("descriptor", "pid", "cpu")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    pid: int
    cpu: int
    def __init__(self, descriptor: _Optional[str] = ..., pid: _Optional[int] = ..., cpu: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("pc", "symbol", "offset", "module", "kind")
    PC_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    pc: int
    symbol: str
    offset: int
    module: str
    kind: FrameKind
    def __init__(self, pc: _Optional[int] = ..., symbol: _Optional[str] = ..., offset: _Optional[int] = ..., module: _Optional[str] = ..., kind: _Optional[_Union[FrameKind, str]] = ...) -> None: ...

class Stack(_message.Message):
    __slots__ = ("pid", "comm", "task_address", "cpu", "frames", "end", "error")
    PID_FIELD_NUMBER: _ClassVar[int]
    COMM_FIELD_NUMBER: _ClassVar[int]
    TASK_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    pid: int
    comm: bytes
    task_address: int
    cpu: int
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    end: StackEnd
    error: _error_pb2.Error
    def __init__(self, pid: _Optional[int] = ..., comm: _Optional[bytes] = ..., task_address: _Optional[int] = ..., cpu: _Optional[int] = ..., frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., end: _Optional[_Union[StackEnd, str]] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ...) -> None: ...

class GetStackResponse(_message.Message):
    __slots__ = ("stacks",)
    STACKS_FIELD_NUMBER: _ClassVar[int]
    stacks: _containers.RepeatedCompositeFieldContainer[Stack]
    def __init__(self, stacks: _Optional[_Iterable[_Union[Stack, _Mapping]]] = ...) -> None: ...
