"""The calls of kvmd.v1.KvmService that libkvm makes: one table for every transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from kvmd.v1 import (
    admin_pb2,
    batch_pb2,
    image_pb2,
    kvm_service_pb2,
    memory_pb2,
    process_pb2,
    stack_pb2,
    symbol_pb2,
    system_pb2,
)

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)

SERVICE = "kvmd.v1.KvmService"
ADMIN = "kvmd.v1.AdminService"


@dataclass(frozen=True, slots=True)
class Call(Generic[Q, A]):
    """A call of the service.

    :ivar name: the method's name.
    :ivar request: the message that is sent.
    :ivar answer: the message that comes back, once or as a stream.
    :ivar service: the service that it is of.
    """

    name: str
    request: type[Q]
    answer: type[A]
    service: str = SERVICE

    @property
    def bound(self) -> bool:
        """Whether it is about something that was opened."""
        return "descriptor" in self.request.DESCRIPTOR.fields_by_name

    @property
    def path(self) -> str:
        """The HTTP/2 path of the method."""
        return f"/{self.service}/{self.name}"


OPEN = Call("Open", kvm_service_pb2.OpenRequest, kvm_service_pb2.OpenResponse)
OPEN_WATCHED = Call("OpenWatched", kvm_service_pb2.OpenRequest, kvm_service_pb2.OpenWatchedResponse)
OPEN_FILES = Call("OpenFiles", kvm_service_pb2.OpenFilesRequest, kvm_service_pb2.OpenFilesResponse)
CLOSE = Call("Close", kvm_service_pb2.CloseRequest, kvm_service_pb2.CloseResponse)
GET_TICKET = Call("GetTicket", kvm_service_pb2.GetTicketRequest, kvm_service_pb2.GetTicketResponse)
NLIST = Call("Nlist", symbol_pb2.NlistRequest, symbol_pb2.NlistResponse)
READ = Call("Read", memory_pb2.ReadRequest, memory_pb2.ReadResponse)
READ_STREAM = Call("ReadStream", memory_pb2.ReadStreamRequest, memory_pb2.ReadStreamResponse)
READ_V = Call("ReadV", memory_pb2.ReadVRequest, memory_pb2.ReadVResponse)
WALK_LIST = Call("WalkList", batch_pb2.WalkListRequest, batch_pb2.WalkListResponse)
READ_C_STRINGS = Call("ReadCStrings", batch_pb2.ReadCStringsRequest, batch_pb2.ReadCStringsResponse)
GET_PROCS = Call("GetProcs", process_pb2.GetProcsRequest, process_pb2.GetProcsResponse)
GET_STRINGS = Call("GetStrings", process_pb2.GetStringsRequest, process_pb2.GetStringsResponse)
GET_INFO = Call("GetInfo", image_pb2.GetInfoRequest, image_pb2.GetInfoResponse)
GET_DUMP_HEADER = Call("GetDumpHeader", image_pb2.GetDumpHeaderRequest, image_pb2.GetDumpHeaderResponse)
GET_LOG = Call("GetLog", image_pb2.GetLogRequest, image_pb2.GetLogResponse)
WRITE = Call("Write", memory_pb2.WriteRequest, memory_pb2.WriteResponse)
WALK_PAGES = Call("WalkPages", memory_pb2.WalkPagesRequest, memory_pb2.WalkPagesResponse)
GET_LOAD_AVERAGE = Call("GetLoadAverage", system_pb2.GetLoadAverageRequest, system_pb2.GetLoadAverageResponse)
GET_CPU_TIMES = Call("GetCpuTimes", system_pb2.GetCpuTimesRequest, system_pb2.GetCpuTimesResponse)
GET_CPUS = Call("GetCpus", system_pb2.GetCpusRequest, system_pb2.GetCpusResponse)
GET_SWAP_INFO = Call("GetSwapInfo", system_pb2.GetSwapInfoRequest, system_pb2.GetSwapInfoResponse)
GET_FILES = Call("GetFiles", system_pb2.GetFilesRequest, system_pb2.GetFilesResponse)
GET_STACK = Call("GetStack", stack_pb2.GetStackRequest, stack_pb2.GetStackResponse)

LIST_CONNECTIONS = Call("ListConnections", admin_pb2.ListConnectionsRequest, admin_pb2.ListConnectionsResponse, ADMIN)
LIST_HANDLES = Call("ListHandles", admin_pb2.ListHandlesRequest, admin_pb2.ListHandlesResponse, ADMIN)
LIST_WORKERS = Call("ListWorkers", admin_pb2.ListWorkersRequest, admin_pb2.ListWorkersResponse, ADMIN)
CLOSE_ONE = Call("CloseOne", admin_pb2.CloseOneRequest, admin_pb2.CloseOneResponse, ADMIN)
GET_STATS = Call("GetStats", admin_pb2.GetStatsRequest, admin_pb2.GetStatsResponse, ADMIN)
