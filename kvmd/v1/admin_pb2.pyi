from kvmd.v1 import bounds_pb2 as _bounds_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListConnectionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListConnectionsResponse(_message.Message):
    __slots__ = ("connections",)
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    connections: _containers.RepeatedCompositeFieldContainer[ConnectionRecord]
    def __init__(self, connections: _Optional[_Iterable[_Union[ConnectionRecord, _Mapping]]] = ...) -> None: ...

class ConnectionRecord(_message.Message):
    __slots__ = ("id", "peer", "uid", "gid", "pid", "exe", "cgroup", "handles", "admin")
    ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    EXE_FIELD_NUMBER: _ClassVar[int]
    CGROUP_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ADMIN_FIELD_NUMBER: _ClassVar[int]
    id: int
    peer: str
    uid: int
    gid: int
    pid: int
    exe: str
    cgroup: str
    handles: int
    admin: bool
    def __init__(self, id: _Optional[int] = ..., peer: _Optional[str] = ..., uid: _Optional[int] = ..., gid: _Optional[int] = ..., pid: _Optional[int] = ..., exe: _Optional[str] = ..., cgroup: _Optional[str] = ..., handles: _Optional[int] = ..., admin: _Optional[bool] = ...) -> None: ...

class ListHandlesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListHandlesResponse(_message.Message):
    __slots__ = ("handles",)
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedCompositeFieldContainer[HandleRecord]
    def __init__(self, handles: _Optional[_Iterable[_Union[HandleRecord, _Mapping]]] = ...) -> None: ...

class HandleRecord(_message.Message):
    __slots__ = ("tag", "peer", "image", "writable", "since", "connection", "worker")
    TAG_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    WRITABLE_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    tag: str
    peer: str
    image: str
    writable: bool
    since: float
    connection: int
    worker: int
    def __init__(self, tag: _Optional[str] = ..., peer: _Optional[str] = ..., image: _Optional[str] = ..., writable: _Optional[bool] = ..., since: _Optional[float] = ..., connection: _Optional[int] = ..., worker: _Optional[int] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerRecord]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerRecord, _Mapping]]] = ...) -> None: ...

class WorkerRecord(_message.Message):
    __slots__ = ("pid", "peer", "image", "handles", "since", "memory", "cpu")
    PID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    pid: int
    peer: str
    image: str
    handles: int
    since: float
    memory: int
    cpu: float
    def __init__(self, pid: _Optional[int] = ..., peer: _Optional[str] = ..., image: _Optional[str] = ..., handles: _Optional[int] = ..., since: _Optional[float] = ..., memory: _Optional[int] = ..., cpu: _Optional[float] = ...) -> None: ...

class CloseOneRequest(_message.Message):
    __slots__ = ("handle", "connection", "worker")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    CONNECTION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    handle: str
    connection: int
    worker: int
    def __init__(self, handle: _Optional[str] = ..., connection: _Optional[int] = ..., worker: _Optional[int] = ...) -> None: ...

class CloseOneResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("limits", "calls", "audit_written", "audit_lost", "uptime")
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    AUDIT_LOST_FIELD_NUMBER: _ClassVar[int]
    UPTIME_FIELD_NUMBER: _ClassVar[int]
    limits: _containers.RepeatedCompositeFieldContainer[LimitRecord]
    calls: _containers.RepeatedCompositeFieldContainer[CallRecord]
    audit_written: int
    audit_lost: int
    uptime: float
    def __init__(self, limits: _Optional[_Iterable[_Union[LimitRecord, _Mapping]]] = ..., calls: _Optional[_Iterable[_Union[CallRecord, _Mapping]]] = ..., audit_written: _Optional[int] = ..., audit_lost: _Optional[int] = ..., uptime: _Optional[float] = ...) -> None: ...

class LimitRecord(_message.Message):
    __slots__ = ("name", "used", "most", "most_per_owner", "refused")
    NAME_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    MOST_FIELD_NUMBER: _ClassVar[int]
    MOST_PER_OWNER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    name: str
    used: int
    most: int
    most_per_owner: int
    refused: int
    def __init__(self, name: _Optional[str] = ..., used: _Optional[int] = ..., most: _Optional[int] = ..., most_per_owner: _Optional[int] = ..., refused: _Optional[int] = ...) -> None: ...

class CallRecord(_message.Message):
    __slots__ = ("method", "status", "count", "seconds")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    method: str
    status: str
    count: int
    seconds: float
    def __init__(self, method: _Optional[str] = ..., status: _Optional[str] = ..., count: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
