"""What a worker answers: one function a call, from request bytes to answer bytes, over an image.

A unary call returns its message; a streaming call yields messages, each of at most about 1 MiB, and
yields at least every twentieth of a second, so that calls of other clients get their turn. A unary call that takes
longer does the same: what it yields are pieces of its message, whose bytes one after the other are that message's.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeAlias, TypeVar

from google.protobuf.message import Message

from kvmd.errors import KvmError
from kvmd.images.base import CHUNK, Image, Indexed
from kvmd.v1 import batch_pb2, image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2, system_pb2
from kvmd.worker.following import USUAL_LENGTH, ListWalk, c_string
from kvmd.worker.packing import packed
from kvmd.worker.protocol import encode_error

BATCH_BYTES = 512 << 10
BATCH_SECONDS = 0.05
PIECE_BYTES = 4 << 20

# What comes before the data in a ReadStreamResponse: the field's tag, and the length as a varint of three bytes.
_DATA = struct.Struct("<4B")
_TAG = memory_pb2.ReadStreamResponse.DATA_FIELD_NUMBER << 3 | 2
_GROUPS = ((0, 0x80), (7, 0x80), (14, 0))
_LONG = 1 << 14
_BUFFER = memoryview(mmap.mmap(-1, _DATA.size + CHUNK))  # of all streams, and no memory before it is used

Record = TypeVar("Record", bound=Message)
Data: TypeAlias = bytes | memoryview
"""What is sent; a buffer is good until the next answer is made."""
Answer: TypeAlias = bytes | Iterator[Data]


def _batches(records: Iterable[Record], most: int = BATCH_BYTES) -> Iterator[list[Record]]:
    """Group records by size and time."""
    batch: list[Record] = []
    size, deadline = 0, time.monotonic() + BATCH_SECONDS
    for record in records:
        batch.append(record)
        size += record.ByteSize()
        if size >= most or time.monotonic() >= deadline:
            yield batch
            batch, size, deadline = [], 0, time.monotonic() + BATCH_SECONDS
    if batch:
        yield batch


def _in_pieces(message: Callable[[list[Record]], Message], records: Iterator[Record], count: int) -> Answer:
    """A message of so many repeated records: whole if that is soon done, else in pieces.

    A protobuf parser merges what it reads of one message, and of a repeated field that makes one list.
    """
    batches = _batches(records, PIECE_BYTES)
    first = next(batches, [])
    if len(first) == count:
        return message(first).SerializeToString()
    return (message(batch).SerializeToString() for batch in chain([first], batches))


def nlist(image: Image, raw: bytes) -> bytes:
    """Look names up."""
    request = symbol_pb2.NlistRequest.FromString(raw)
    return symbol_pb2.NlistResponse(symbols=image.symbols(request.names)).SerializeToString()


def read(image: Image, raw: bytes) -> bytes:
    """Read one range."""
    request = memory_pb2.ReadRequest.FromString(raw)
    data = image.read(request.address, request.length, request.space, request.pid)
    return packed(memory_pb2.ReadResponse(data=data), request.zstd).SerializeToString()


def _readable(failure: KvmError) -> int:
    return int(failure.metadata.get("readable", "0"))


def read_stream(image: Image, raw: bytes) -> Iterator[Data]:
    """Read a long range in chunks; the readable part of the last one comes before its error."""
    request = memory_pb2.ReadStreamRequest.FromString(raw)
    done = 0
    while done < request.length:
        address, length = request.address + done, min(CHUNK, request.length - done)
        try:
            yield _chunk(image, request, address, length)
        except KvmError as failure:
            if readable := _readable(failure):
                yield _chunk(image, request, address, readable)
            failure.metadata["readable"] = str(done + readable)
            raise
        done += length


def _chunk(image: Image, request: memory_pb2.ReadStreamRequest, address: int, length: int) -> Data:
    """A message of the stream; made where the memory is read, without a copy, unless it is short or compressed."""
    data = _BUFFER[_DATA.size : _DATA.size + length]
    if request.zstd or length < _LONG or not image.read_into(address, data, request.space):
        answer = memory_pb2.ReadStreamResponse(data=image.read(address, length, request.space, request.pid))
        return packed(answer, request.zstd).SerializeToString()
    _DATA.pack_into(_BUFFER, 0, _TAG, *(length >> at & 0x7F | more for at, more in _GROUPS))
    return _BUFFER[: _DATA.size + length]


def _range(image: Image, item: memory_pb2.Range) -> memory_pb2.RangeResult:
    try:
        return memory_pb2.RangeResult(data=image.read(item.address, item.length, item.space, item.pid))
    except KvmError as failure:
        readable = _readable(failure)
        data = image.read(item.address, readable, item.space, item.pid) if readable else b""
        return memory_pb2.RangeResult(data=data, error=encode_error(failure))


def read_v(image: Image, raw: bytes) -> Answer:
    """Read many ranges."""
    request = memory_pb2.ReadVRequest.FromString(raw)
    results = (packed(_range(image, item), request.zstd) for item in request.ranges)
    return _in_pieces(lambda found: memory_pb2.ReadVResponse(results=found), results, len(request.ranges))


def walk_list(image: Image, raw: bytes) -> Iterator[bytes]:
    """Walk a list."""
    walk = ListWalk(image, batch_pb2.WalkListRequest.FromString(raw))
    for batch in _batches(walk):
        yield batch_pb2.WalkListResponse(elements=batch).SerializeToString()
    if walk.more:
        yield batch_pb2.WalkListResponse(more=True).SerializeToString()


def read_c_strings(image: Image, raw: bytes) -> Answer:
    """Read strings."""
    request = batch_pb2.ReadCStringsRequest.FromString(raw)

    def read(address: int, length: int) -> bytes:
        return image.read(address, length, request.space, request.pid)

    most = request.max_length or USUAL_LENGTH
    strings = (c_string(read, address, most) for address in request.addresses)
    return _in_pieces(lambda found: batch_pb2.ReadCStringsResponse(strings=found), strings, len(request.addresses))


def get_procs(image: Image, raw: bytes) -> Iterator[bytes]:
    """List processes."""
    request = process_pb2.GetProcsRequest.FromString(raw)
    for batch in _batches(image.processes(request)):
        yield process_pb2.GetProcsResponse(processes=batch).SerializeToString()


def get_strings(image: Image, raw: bytes) -> bytes:
    """Read a process's arguments or environment."""
    request = process_pb2.GetStringsRequest.FromString(raw)
    strings = image.strings(request.pid, request.kind, request.max_bytes_read)
    return process_pb2.GetStringsResponse(strings=strings).SerializeToString()


def get_info(image: Image, raw: bytes) -> bytes:
    """Describe the image."""
    image_pb2.GetInfoRequest.FromString(raw)
    return image_pb2.GetInfoResponse(info=image.info()).SerializeToString()


def get_dump_header(image: Image, raw: bytes) -> bytes:
    """Make the header of a dump's file."""
    request = image_pb2.GetDumpHeaderRequest.FromString(raw)
    return image.dump_header(request.memory_bytes).SerializeToString()


def get_log(image: Image, raw: bytes) -> Iterator[bytes]:
    """Read the printk buffer."""
    image_pb2.GetLogRequest.FromString(raw)
    for batch in _batches(image.log()):
        yield image_pb2.GetLogResponse(records=batch).SerializeToString()


def write(image: Image, raw: bytes) -> bytes:
    """Write memory."""
    request = memory_pb2.WriteRequest.FromString(raw)
    try:
        image.write(request.address, request.data)
    except KvmError as failure:
        if not (written := int(failure.metadata.get("written", "0"))):
            raise
        return memory_pb2.WriteResponse(written=written, error=encode_error(failure)).SerializeToString()
    return memory_pb2.WriteResponse(written=len(request.data)).SerializeToString()


def digest(image: Image, raw: bytes) -> bytes:
    """Hash what a write would replace: SHA-256, 32 bytes. No call of a client's: the daemon asks, for the record."""
    request = memory_pb2.WriteRequest.FromString(raw)
    there = image.read(request.address, len(request.data), memory_pb2.ADDRESS_SPACE_KERNEL)
    return hashlib.sha256(there).digest()


def walk_pages(image: Image, raw: bytes) -> Iterator[bytes]:
    """Walk the kernel's page tables."""
    request = memory_pb2.WalkPagesRequest.FromString(raw)
    for batch in _batches(image.pages(request.start)):
        yield memory_pb2.WalkPagesResponse(pages=batch).SerializeToString()


def get_load_average(image: Image, raw: bytes) -> bytes:
    """Read the load averages."""
    system_pb2.GetLoadAverageRequest.FromString(raw)
    return system_pb2.GetLoadAverageResponse(load_average=image.load_average()).SerializeToString()


def get_cpu_times(image: Image, raw: bytes) -> bytes:
    """Read how CPUs spent their time."""
    system_pb2.GetCpuTimesRequest.FromString(raw)
    return system_pb2.GetCpuTimesResponse(times=image.cpu_times()).SerializeToString()


def get_cpus(image: Image, raw: bytes) -> bytes:
    """List CPUs."""
    system_pb2.GetCpusRequest.FromString(raw)
    return image.cpus().SerializeToString()


def get_swap_info(image: Image, raw: bytes) -> bytes:
    """List swap areas."""
    system_pb2.GetSwapInfoRequest.FromString(raw)
    return system_pb2.GetSwapInfoResponse(areas=image.swap_areas()).SerializeToString()


def get_files(image: Image, raw: bytes) -> Iterator[bytes]:
    """List open files."""
    request = system_pb2.GetFilesRequest.FromString(raw)
    for batch in _batches(image.files(request.pid)):
        yield system_pb2.GetFilesResponse(files=batch).SerializeToString()


def get_stack(image: Image, raw: bytes) -> Iterator[bytes]:
    """Unwind stacks."""
    request = stack_pb2.GetStackRequest.FromString(raw)
    for batch in _batches(image.stacks(request)):
        yield stack_pb2.GetStackResponse(stacks=batch).SerializeToString()


def index_inputs(image: Image, raw: bytes) -> Iterator[bytes]:
    """Tell what an index of the kernel's build is made of, as it is. No call of a client's."""
    given = image.index_inputs() if isinstance(image, Indexed) else b""
    for at in range(0, len(given), CHUNK):
        yield given[at : at + CHUNK]


METHODS: dict[str, Callable[[Image, bytes], Answer]] = {
    "Nlist": nlist,
    "Read": read,
    "ReadStream": read_stream,
    "ReadV": read_v,
    "WalkList": walk_list,
    "ReadCStrings": read_c_strings,
    "GetProcs": get_procs,
    "GetStrings": get_strings,
    "GetInfo": get_info,
    "GetDumpHeader": get_dump_header,
    "GetLog": get_log,
    "Write": write,
    "Digest": digest,
    "WalkPages": walk_pages,
    "GetLoadAverage": get_load_average,
    "GetCpuTimes": get_cpu_times,
    "GetCpus": get_cpus,
    "GetSwapInfo": get_swap_info,
    "GetFiles": get_files,
    "GetStack": get_stack,
    "IndexInputs": index_inputs,
}
