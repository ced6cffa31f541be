"""The table of calls on an open image: a new one is a line here and a function in the worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from kvmd.errors import Reason, error
from kvmd.rpc.validate import MOST_READV_BYTES
from kvmd.v1 import batch_pb2, image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2, system_pb2


class Call(NamedTuple):
    """One call.

    :ivar request: its request message, which has a field ``descriptor``.
    :ivar verbs: what the policy must allow for this request.
    :ivar streams: whether the answer is a stream.
    :ivar ranges: the (address, length) of memory that a request asks for, if the answer holds memory.
    """

    request: type[Message]
    verbs: Callable[[Any], tuple[str, ...]]
    streams: bool = False
    ranges: Callable[[Any], Sequence[tuple[int, int]]] | None = None


def _always(*verbs: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda request: verbs


def _processes(request: process_pb2.GetProcsRequest) -> tuple[str, ...]:
    return ("processes", "arguments") if request.arguments else ("processes",)


def _strings(request: process_pb2.GetStringsRequest) -> tuple[str, ...]:
    kinds = {
        process_pb2.STRINGS_KIND_ARGUMENTS: ("arguments",),
        process_pb2.STRINGS_KIND_ENVIRONMENT: ("environment",),
    }
    try:
        return kinds[request.kind]
    except KeyError:
        raise error(Reason.BAD_ARGUMENT, "GetStringsRequest.kind: neither ARGUMENTS nor ENVIRONMENT") from None


def _ranges(request: memory_pb2.ReadVRequest) -> tuple[str, ...]:
    if sum(item.length for item in request.ranges) > MOST_READV_BYTES:
        message = f"ReadVRequest.ranges: the lengths add up to more than {MOST_READV_BYTES}"
        raise error(Reason.FIELD_OUT_OF_BOUNDS, message, field="kvmd.v1.ReadVRequest.ranges", limit=MOST_READV_BYTES)
    return ("read",)


def _c_strings(request: batch_pb2.ReadCStringsRequest) -> tuple[str, ...]:
    if len(request.addresses) * request.max_length > MOST_READV_BYTES:
        message = f"ReadCStringsRequest: addresses times max_length are more than {MOST_READV_BYTES}"
        field = "kvmd.v1.ReadCStringsRequest.max_length"
        raise error(Reason.FIELD_OUT_OF_BOUNDS, message, field=field, limit=MOST_READV_BYTES)
    return ("read",)


def _one_range(request: memory_pb2.ReadRequest | memory_pb2.ReadStreamRequest) -> list[tuple[int, int]]:
    return [(request.address, request.length)]


def _many_ranges(request: memory_pb2.ReadVRequest) -> list[tuple[int, int]]:
    return [(item.address, item.length) for item in request.ranges]


def _list_range(request: batch_pb2.WalkListRequest) -> list[tuple[int, int]]:
    return [(request.head, 8)]


def _string_ranges(request: batch_pb2.ReadCStringsRequest) -> list[tuple[int, int]]:
    return [(address, request.max_length or 255) for address in request.addresses]


CALLS: dict[str, Call] = {
    "Nlist": Call(symbol_pb2.NlistRequest, _always("symbols")),
    "Read": Call(memory_pb2.ReadRequest, _always("read"), ranges=_one_range),
    "ReadStream": Call(memory_pb2.ReadStreamRequest, _always("read"), streams=True, ranges=_one_range),
    "ReadV": Call(memory_pb2.ReadVRequest, _ranges, ranges=_many_ranges),
    "WalkList": Call(batch_pb2.WalkListRequest, _always("read"), streams=True, ranges=_list_range),
    "ReadCStrings": Call(batch_pb2.ReadCStringsRequest, _c_strings, ranges=_string_ranges),
    "GetProcs": Call(process_pb2.GetProcsRequest, _processes, streams=True),
    "GetStrings": Call(process_pb2.GetStringsRequest, _strings),
    "GetInfo": Call(image_pb2.GetInfoRequest, _always("info")),
    "GetLog": Call(image_pb2.GetLogRequest, _always("log"), streams=True),
    "WalkPages": Call(memory_pb2.WalkPagesRequest, _always("read"), streams=True),
    "GetLoadAverage": Call(system_pb2.GetLoadAverageRequest, _always("info")),
    "GetCpuTimes": Call(system_pb2.GetCpuTimesRequest, _always("info")),
    "GetCpus": Call(system_pb2.GetCpusRequest, _always("info")),
    "GetSwapInfo": Call(system_pb2.GetSwapInfoRequest, _always("info")),
    "GetDumpHeader": Call(image_pb2.GetDumpHeaderRequest, _always("read")),
    "GetFiles": Call(system_pb2.GetFilesRequest, _always("files"), streams=True),
    "GetStack": Call(stack_pb2.GetStackRequest, _always("processes", "symbols"), streams=True),
}
