from kvmd.v1 import batch_pb2 as _batch_pb2
from kvmd.v1 import bounds_pb2 as _bounds_pb2
from kvmd.v1 import error_pb2 as _error_pb2
from kvmd.v1 import image_pb2 as _image_pb2
from kvmd.v1 import memory_pb2 as _memory_pb2
from kvmd.v1 import process_pb2 as _process_pb2
from kvmd.v1 import stack_pb2 as _stack_pb2
from kvmd.v1 import symbol_pb2 as _symbol_pb2
from kvmd.v1 import system_pb2 as _system_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OpenRequest(_message.Message):
    __slots__ = ("execfile", "corefile", "swapfiles", "flags", "dump_offset")
    EXECFILE_FIELD_NUMBER: _ClassVar[int]
    COREFILE_FIELD_NUMBER: _ClassVar[int]
    SWAPFILES_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    DUMP_OFFSET_FIELD_NUMBER: _ClassVar[int]
    execfile: str
    corefile: str
    swapfiles: _containers.RepeatedScalarFieldContainer[str]
    flags: int
    dump_offset: int
    def __init__(self, execfile: _Optional[str] = ..., corefile: _Optional[str] = ..., swapfiles: _Optional[_Iterable[str]] = ..., flags: _Optional[int] = ..., dump_offset: _Optional[int] = ...) -> None: ...

class DaemonProcess(_message.Message):
    __slots__ = ("pid", "start_time")
    PID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    pid: int
    start_time: int
    def __init__(self, pid: _Optional[int] = ..., start_time: _Optional[int] = ...) -> None: ...

class OpenResponse(_message.Message):
    __slots__ = ("descriptor", "kernel_name", "foreign", "dump", "daemon")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    KERNEL_NAME_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    DUMP_FIELD_NUMBER: _ClassVar[int]
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    kernel_name: str
    foreign: bool
    dump: bool
    daemon: DaemonProcess
    def __init__(self, descriptor: _Optional[str] = ..., kernel_name: _Optional[str] = ..., foreign: _Optional[bool] = ..., dump: _Optional[bool] = ..., daemon: _Optional[_Union[DaemonProcess, _Mapping]] = ...) -> None: ...

class OpenWatchedResponse(_message.Message):
    __slots__ = ("done_bytes", "total_bytes", "opened")
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    done_bytes: int
    total_bytes: int
    opened: OpenResponse
    def __init__(self, done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., opened: _Optional[_Union[OpenResponse, _Mapping]] = ...) -> None: ...

class OpenFilesRequest(_message.Message):
    __slots__ = ("open",)
    OPEN_FIELD_NUMBER: _ClassVar[int]
    open: OpenRequest
    def __init__(self, open: _Optional[_Union[OpenRequest, _Mapping]] = ...) -> None: ...

class OpenFilesResponse(_message.Message):
    __slots__ = ("descriptor", "kernel_name", "errbuf", "error", "foreign", "dump", "daemon")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    KERNEL_NAME_FIELD_NUMBER: _ClassVar[int]
    ERRBUF_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    DUMP_FIELD_NUMBER: _ClassVar[int]
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    kernel_name: str
    errbuf: str
    error: _error_pb2.Error
    foreign: bool
    dump: bool
    daemon: DaemonProcess
    def __init__(self, descriptor: _Optional[str] = ..., kernel_name: _Optional[str] = ..., errbuf: _Optional[str] = ..., error: _Optional[_Union[_error_pb2.Error, _Mapping]] = ..., foreign: _Optional[bool] = ..., dump: _Optional[bool] = ..., daemon: _Optional[_Union[DaemonProcess, _Mapping]] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class CloseResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTicketRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class GetTicketResponse(_message.Message):
    __slots__ = ("ticket", "socket")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    ticket: bytes
    socket: str
    def __init__(self, ticket: _Optional[bytes] = ..., socket: _Optional[str] = ...) -> None: ...
