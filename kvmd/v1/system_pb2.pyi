from kvmd.v1 import bounds_pb2 as _bounds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetLoadAverageRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class GetLoadAverageResponse(_message.Message):
    __slots__ = ("load_average",)
    LOAD_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    load_average: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, load_average: _Optional[_Iterable[float]] = ...) -> None: ...

class GetCpuTimesRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class CpuTimes(_message.Message):
    __slots__ = ("cpu", "user_ns", "nice_ns", "system_ns", "idle_ns", "iowait_ns", "irq_ns", "softirq_ns", "steal_ns", "guest_ns", "guest_nice_ns")
    CPU_FIELD_NUMBER: _ClassVar[int]
    USER_NS_FIELD_NUMBER: _ClassVar[int]
    NICE_NS_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_NS_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    IOWAIT_NS_FIELD_NUMBER: _ClassVar[int]
    IRQ_NS_FIELD_NUMBER: _ClassVar[int]
    SOFTIRQ_NS_FIELD_NUMBER: _ClassVar[int]
    STEAL_NS_FIELD_NUMBER: _ClassVar[int]
    GUEST_NS_FIELD_NUMBER: _ClassVar[int]
    GUEST_NICE_NS_FIELD_NUMBER: _ClassVar[int]
    cpu: int
    user_ns: int
    nice_ns: int
    system_ns: int
    idle_ns: int
    iowait_ns: int
    irq_ns: int
    softirq_ns: int
    steal_ns: int
    guest_ns: int
    guest_nice_ns: int
    def __init__(self, cpu: _Optional[int] = ..., user_ns: _Optional[int] = ..., nice_ns: _Optional[int] = ..., system_ns: _Optional[int] = ..., idle_ns: _Optional[int] = ..., iowait_ns: _Optional[int] = ..., irq_ns: _Optional[int] = ..., softirq_ns: _Optional[int] = ..., steal_ns: _Optional[int] = ..., guest_ns: _Optional[int] = ..., guest_nice_ns: _Optional[int] = ...) -> None: ...

class GetCpuTimesResponse(_message.Message):
    __slots__ = ("times",)
    TIMES_FIELD_NUMBER: _ClassVar[int]
    times: _containers.RepeatedCompositeFieldContainer[CpuTimes]
    def __init__(self, times: _Optional[_Iterable[_Union[CpuTimes, _Mapping]]] = ...) -> None: ...

class GetCpusRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class Cpu(_message.Message):
    __slots__ = ("number", "online", "offset", "current_task")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ONLINE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TASK_FIELD_NUMBER: _ClassVar[int]
    number: int
    online: bool
    offset: int
    current_task: int
    def __init__(self, number: _Optional[int] = ..., online: _Optional[bool] = ..., offset: _Optional[int] = ..., current_task: _Optional[int] = ...) -> None: ...

class GetCpusResponse(_message.Message):
    __slots__ = ("max_cpus", "cpus")
    MAX_CPUS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    max_cpus: int
    cpus: _containers.RepeatedCompositeFieldContainer[Cpu]
    def __init__(self, max_cpus: _Optional[int] = ..., cpus: _Optional[_Iterable[_Union[Cpu, _Mapping]]] = ...) -> None: ...

class GetSwapInfoRequest(_message.Message):
    __slots__ = ("descriptor",)
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    def __init__(self, descriptor: _Optional[str] = ...) -> None: ...

class SwapArea(_message.Message):
    __slots__ = ("path", "number", "kind", "size_bytes", "used_bytes", "priority", "uuid", "label", "satisfied_by")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_BY_FIELD_NUMBER: _ClassVar[int]
    path: bytes
    number: int
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int
    uuid: str
    label: str
    satisfied_by: str
    def __init__(self, path: _Optional[bytes] = ..., number: _Optional[int] = ..., kind: _Optional[str] = ..., size_bytes: _Optional[int] = ..., used_bytes: _Optional[int] = ..., priority: _Optional[int] = ..., uuid: _Optional[str] = ..., label: _Optional[str] = ..., satisfied_by: _Optional[str] = ...) -> None: ...

class GetSwapInfoResponse(_message.Message):
    __slots__ = ("areas",)
    AREAS_FIELD_NUMBER: _ClassVar[int]
    areas: _containers.RepeatedCompositeFieldContainer[SwapArea]
    def __init__(self, areas: _Optional[_Iterable[_Union[SwapArea, _Mapping]]] = ...) -> None: ...

class GetFilesRequest(_message.Message):
    __slots__ = ("descriptor", "pid")
    DESCRIPTOR_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    descriptor: str
    pid: int
    def __init__(self, descriptor: _Optional[str] = ..., pid: _Optional[int] = ...) -> None: ...

class OpenFile(_message.Message):
    __slots__ = ("pid", "fd", "path", "type", "flags", "position", "inode", "device", "uid", "file_address")
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    FILE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    pid: int
    fd: int
    path: bytes
    type: str
    flags: int
    position: int
    inode: int
    device: int
    uid: int
    file_address: int
    def __init__(self, pid: _Optional[int] = ..., fd: _Optional[int] = ..., path: _Optional[bytes] = ..., type: _Optional[str] = ..., flags: _Optional[int] = ..., position: _Optional[int] = ..., inode: _Optional[int] = ..., device: _Optional[int] = ..., uid: _Optional[int] = ..., file_address: _Optional[int] = ...) -> None: ...

class GetFilesResponse(_message.Message):
    __slots__ = ("files",)
    FILES_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[OpenFile]
    def __init__(self, files: _Optional[_Iterable[_Union[OpenFile, _Mapping]]] = ...) -> None: ...
