"""The part of the fake image that counts: writes, page tables, load, CPUs, swap, open files."""

from __future__ import annotations

import threading

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kvmd.errors import TABLE, KvmError, Reason, error
from kvmd.v1 import error_pb2, memory_pb2, stack_pb2, system_pb2

BASE = 0xFFFFFFFF81000000
PER_CPU_START, PER_CPU_END = 0x1000, 0x3000
COUNTER = PER_CPU_START + 0x10
PER_CPU_SYMBOLS = {
    "__per_cpu_start": (PER_CPU_START, 3),
    "__per_cpu_end": (PER_CPU_END, 3),
    "counter": (COUNTER, 3),
}
CPUS = {0: True, 1: True, 3: False}
PAGES = 5000


def offset(cpu: int) -> int:
    """Of a CPU's own data: its counter is at BASE + 0x110, 0x210 ..."""
    return BASE + (cpu + 1) * 0x100 - PER_CPU_START


def wire(failure: KvmError) -> error_pb2.Error:
    return error_pb2.Error(reason=failure.reason.value, message=failure.message, metadata=failure.metadata)


def abort(context: grpc.ServicerContext, failure: KvmError) -> None:
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=failure.reason.value, domain="kvmd", metadata=failure.metadata))
    code = getattr(grpc.StatusCode, TABLE[failure.reason].status).value[0]
    context.abort_with_status(
        rpc_status.to_status(status_pb2.Status(code=code, message=failure.message, details=[detail]))
    )


def stack(pid: int, cpu: int | None = None) -> stack_pb2.Stack:
    """A stack that has frames of every kind."""
    made = stack_pb2.Stack(pid=pid, comm=b"evil\x1b", task_address=BASE + pid, cpu=cpu, end=stack_pb2.STACK_END_USER)
    made.frames.add(pc=BASE + 1, symbol="inner", kind=stack_pb2.FRAME_KIND_INLINE)
    made.frames.add(pc=BASE + 1, symbol="outer", offset=1, kind=stack_pb2.FRAME_KIND_INTERRUPTED)
    made.frames.add(pc=BASE + 9, symbol="in\x1bmodule", offset=8, module="m", kind=stack_pb2.FRAME_KIND_FOUND)
    made.frames.add(pc=BASE + 99, kind=stack_pb2.FRAME_KIND_CALL)
    return made


class SystemCalls:
    """Calls of the service, on what Fake holds."""

    pages_sent = 0
    walk_ended = threading.Event()
    write_fault: KvmError | None = None
    cpu_offsets = True

    def Write(self, request, context):  # noqa: N802
        self._enter("Write", request, context, request.descriptor)
        opened = self.requests[request.descriptor]
        if opened.corefile:
            abort(context, error(Reason.WRITE_DEAD, "a dump"))
        if not opened.flags & 2:
            abort(context, error(Reason.WRITE_READ_ONLY, "read-only"))
        start = request.address - BASE
        room = max(0, min(len(request.data), len(self.memory) - start)) if start >= 0 else 0
        self.memory = self.memory[:start] + request.data[:room] + self.memory[start + room :] if room else self.memory
        if room == len(request.data):
            return memory_pb2.WriteResponse(written=room)
        failure = error(Reason.NOT_MAPPED, "not mapped", address=request.address + room, written=room)
        if not room:
            abort(context, failure)
        return memory_pb2.WriteResponse(written=room, error=wire(failure))

    def WalkPages(self, request, context):  # noqa: N802
        self._enter("WalkPages", request, context, request.descriptor)
        self.walk_ended = threading.Event()
        context.add_callback(self.walk_ended.set)
        for first in range(0, PAGES, 100):
            answer = memory_pb2.WalkPagesResponse()
            for n in range(first, first + 100):
                direct = {"direct_address": 0xFFFF888000000000 + n * 4096} if n else {}
                answer.pages.add(
                    virtual_address=BASE + n * 4096, physical_address=n * 4096, length=4096, protection=1 + n % 2 * 2,
                    present=n != 3, **direct,
                )  # fmt: skip
            self.pages_sent = first + 100
            yield answer

    def GetLoadAverage(self, request, context):  # noqa: N802
        self._enter("GetLoadAverage", request, context, request.descriptor)
        return system_pb2.GetLoadAverageResponse(load_average=[0.5, 0.25, 0.125])

    def GetCpuTimes(self, request, context):  # noqa: N802
        self._enter("GetCpuTimes", request, context, request.descriptor)
        answer = system_pb2.GetCpuTimesResponse()
        for cpu in (-1, 0, 1):
            names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
            times = {f"{name}_ns": (n + 1) * 10**9 + 19_999_999 for n, name in enumerate(names)}
            answer.times.add(cpu=cpu, **times)
        return answer

    def GetCpus(self, request, context):  # noqa: N802
        self._enter("GetCpus", request, context, request.descriptor)
        answer = system_pb2.GetCpusResponse(max_cpus=4)
        for number, online in CPUS.items():
            where = {"offset": offset(number) % 2**64} if self.cpu_offsets else {}
            answer.cpus.add(number=number, online=online, **where)
        return answer

    def GetSwapInfo(self, request, context):  # noqa: N802
        self._enter("GetSwapInfo", request, context, request.descriptor)
        answer = system_pb2.GetSwapInfoResponse()
        known = {"uuid": "00112233-4455-6677-8899-aabbccddeeff", "label": "one", "satisfied_by": "vda.img"}
        answer.areas.add(path=b"/dev/vda", kind="partition", size_bytes=8192, used_bytes=4096, priority=-2, **known)
        answer.areas.add(path=b"/swap\x1b\xff", number=1, kind="file", size_bytes=1024, used_bytes=0, priority=5)
        return answer

    def GetFiles(self, request, context):  # noqa: N802
        self._enter("GetFiles", request, context, request.descriptor)
        if request.pid not in {0, 1, 30}:
            abort(context, error(Reason.NO_SUCH_PROCESS, f"no process {request.pid}"))
        for pid, path in ((1, b"/dev/null"), (30, b"socket:[7]")):
            if request.pid in {0, pid}:
                file = system_pb2.OpenFile(pid=pid, fd=3, path=path, type="character", flags=2, position=5, uid=4)
                yield system_pb2.GetFilesResponse(files=[file])

    def GetStack(self, request, context):  # noqa: N802
        self._enter("GetStack", request, context, request.descriptor)
        failed = stack_pb2.Stack(pid=30, error=wire(error(Reason.TASK_RUNNING, "runs")))
        torn = stack(2)
        torn.end = stack_pb2.STACK_END_FAULT
        torn.error.CopyFrom(wire(error(Reason.EXCLUDED, "left out", address=BASE)))
        which = request.WhichOneof("whose")
        if which == "cpu":
            yield stack_pb2.GetStackResponse(stacks=[stack(1, request.cpu)])
        elif which is None:
            yield stack_pb2.GetStackResponse(stacks=[stack(1, 3)])
            yield stack_pb2.GetStackResponse(stacks=[torn, failed])
        elif request.pid in (1, 2):
            yield stack_pb2.GetStackResponse(stacks=[stack(1) if request.pid == 1 else torn])
        else:
            abort(context, error(Reason.NO_SUCH_PROCESS, f"no process has the id {request.pid}"))
