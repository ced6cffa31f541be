"""A server of kvmd.v1 in this process, with one small image: what libkvm is tested against without a daemon."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc

from kvmd.errors import KvmError, Reason, error
from kvmd.v1 import image_pb2, kvm_service_pb2, memory_pb2, process_pb2, symbol_pb2
from kvmd.v1.kvm_service_pb2_grpc import KvmServiceServicer, add_KvmServiceServicer_to_server
from unit.client.fake_system import PER_CPU_SYMBOLS, SystemCalls, abort, wire

MIB = 1 << 20
BASE = 0xFFFFFFFF81000000
MEMORY = bytes(range(251)) * (5 * MIB // 251)
TEXT_TYPE, DATA_TYPE = 5, 7
SYMBOLS = {"_stext": (BASE, TEXT_TYPE), "jiffies": (BASE + 0x1000, DATA_TYPE), "_under": (BASE + 8, DATA_TYPE)}
SYMBOLS |= PER_CPU_SYMBOLS
USER = 0x400000
USER_MEMORY = {1: b"memory of init" * 100, 30: b"memory of 30"}
NO_FILES = 0x80000000
NO_FILES_CALLS = {"Close", "GetProcs", "GetStrings", "GetInfo", "GetLoadAverage", "GetCpuTimes", "GetSwapInfo"}


def processes() -> list[process_pb2.Process]:
    init = process_pb2.Process(
        pid=1, tgid=1, ppid=0, pgid=1, sid=1, state="S", comm=b"init", start_time_ns=5, rss_bytes=4096, num_threads=1,
        vsz_bytes=8192, task_address=BASE + 64, tty=0,
    )  # fmt: skip
    kthread = process_pb2.Process(pid=2, tgid=2, state="I", comm=b"kthreadd", kernel_thread=True, num_threads=1)
    hostile = process_pb2.Process(
        pid=30,
        tgid=30,
        ppid=1,
        uid=1000,
        euid=1001,
        gid=5,
        egid=6,
        state="R",
        nice=-5,
        comm=b"\x1b[2J\xff",
        num_threads=1,
    )
    return [init, kthread, hostile]


ARGUMENTS = {1: [b"/sbin/init", b"--quiet"], 30: [b"evil\x1b]0;x\x07", b"caf\xc3\xa9", b"\xff\n"]}


class Fake(SystemCalls, KvmServiceServicer):
    """The image. ``fail`` maps a method to the error of its next call, ``delay`` to seconds before it."""

    def __init__(self) -> None:
        self.fail: dict[str, KvmError] = {}
        self.delay: dict[str, float] = {}
        self.seen: list[tuple[str, object]] = []
        self.open: set[str] = set()
        self.requests: dict[str, kvm_service_pb2.OpenRequest] = {}
        self.memory = MEMORY
        self.fault: KvmError | None = None  # what a read past the end answers
        self.live = False
        self.ids = iter(range(1, 10**6))
        self.lock = threading.Lock()

    def _enter(self, name: str, request: object, context: grpc.ServicerContext, descriptor: str | None = None) -> None:
        with self.lock:
            self.seen.append((name, request))
            failure = self.fail.pop(name, None)
        time.sleep(self.delay.get(name, 0))
        if failure is None and descriptor is not None and descriptor not in self.open:
            failure = error(Reason.NO_SUCH_DESCRIPTOR, "no such descriptor")
        if failure is None and descriptor and self.requests[descriptor].flags & NO_FILES and name not in NO_FILES_CALLS:
            failure = error(Reason.NO_FILES, "no files", call=name)
        if failure is not None:
            abort(context, failure)

    def Open(self, request, context):  # noqa: N802
        self._enter("Open", request, context)
        if failure := self._refused(request):
            abort(context, failure)
        return kvm_service_pb2.OpenResponse(descriptor=self._new(request), kernel_name="vmlinux-fake")

    def OpenFiles(self, request, context):  # noqa: N802
        self._enter("OpenFiles", request, context)
        if failure := self._refused(request.open):
            return kvm_service_pb2.OpenFilesResponse(errbuf=failure.text, error=wire(failure))
        return kvm_service_pb2.OpenFilesResponse(descriptor=self._new(request.open), kernel_name="vmlinux-fake")

    def _refused(self, request: kvm_service_pb2.OpenRequest) -> KvmError | None:
        if request.flags & 1:
            return error(Reason.BAD_FLAGS, "flags 1 are not allowed")
        if request.corefile.endswith("nonexistent"):
            return error(Reason.SOURCE_NOT_FOUND, "no file", path=request.corefile)
        return None

    def _new(self, request: kvm_service_pb2.OpenRequest) -> str:
        with self.lock:
            descriptor = f"secret-{next(self.ids)}"
            self.open.add(descriptor)
            self.requests[descriptor] = request
        return descriptor

    def Close(self, request, context):  # noqa: N802
        self._enter("Close", request, context, request.descriptor)
        self.open.remove(request.descriptor)
        return kvm_service_pb2.CloseResponse()

    def GetDumpHeader(self, request, context):  # noqa: N802
        self._enter("GetDumpHeader", request, context, request.descriptor)
        abort(context, error(Reason.UNSUPPORTED, "only a NetBSD dump has such a header"))

    def Nlist(self, request, context):  # noqa: N802
        self._enter("Nlist", request, context, request.descriptor)
        answer = symbol_pb2.NlistResponse()
        for name in request.names:
            value, kind = SYMBOLS.get(name, (0, 0))
            source = symbol_pb2.SYMBOL_SOURCE_KALLSYMS if name in SYMBOLS else 0
            answer.symbols.add(name=name, found=name in SYMBOLS, value=value, n_type=kind, source=source)
        return answer

    def _get(self, wanted) -> tuple[bytes, KvmError | None]:
        if wanted.space != memory_pb2.ADDRESS_SPACE_USER:
            return self._bytes(wanted.address, wanted.length)
        if wanted.pid == 2:
            return b"", error(Reason.NO_USER_MEMORY, "2 is a kernel thread")
        if wanted.pid not in USER_MEMORY:
            return b"", error(Reason.NO_SUCH_PROCESS, f"no process {wanted.pid}")
        return self._bytes(wanted.address, wanted.length, USER, USER_MEMORY[wanted.pid])

    def _bytes(
        self, address: int, length: int, base: int = BASE, memory: bytes | None = None
    ) -> tuple[bytes, KvmError | None]:
        start, memory = address - base, self.memory if memory is None else memory
        data = memory[start : start + length] if start >= 0 else b""
        if len(data) == length:
            return data, None
        failure = self.fault or error(Reason.NOT_MAPPED, "not mapped", address=address + len(data))
        failure.metadata["readable"] = str(len(data))
        return data, failure

    def Read(self, request, context):  # noqa: N802
        self._enter("Read", request, context, request.descriptor)
        data, failure = self._get(request)
        if failure:
            abort(context, failure)
        return memory_pb2.ReadResponse(data=data)

    def ReadV(self, request, context):  # noqa: N802
        self._enter("ReadV", request, context, request.descriptor)
        answer = memory_pb2.ReadVResponse()
        for wanted in request.ranges:
            data, failure = self._get(wanted)
            answer.results.add(data=data, error=wire(failure) if failure else None)
        return answer

    def ReadStream(self, request, context):  # noqa: N802
        self._enter("ReadStream", request, context, request.descriptor)
        data, failure = self._get(request)
        for start in range(0, len(data), MIB):
            yield memory_pb2.ReadStreamResponse(data=data[start : start + MIB])
        if failure:
            abort(context, failure)

    def GetProcs(self, request, context):  # noqa: N802
        self._enter("GetProcs", request, context, request.descriptor)
        for process in processes():
            if request.filter == process_pb2.PROCESS_FILTER_PID and process.pid != request.argument:
                continue
            if request.filter == process_pb2.PROCESS_FILTER_KTHREAD and not process.kernel_thread:
                continue
            if request.filter == process_pb2.PROCESS_FILTER_UID and process.euid != request.argument:
                continue
            if request.arguments:
                process.arguments.CopyFrom(self._strings(process.pid))
            yield process_pb2.GetProcsResponse(processes=[process])
            if request.threads and process.pid == 1:
                process.pid, process.comm = 9, b"thread"
                yield process_pb2.GetProcsResponse(processes=[process])

    def _strings(self, pid: int) -> process_pb2.Strings:
        strings = process_pb2.Strings(values=ARGUMENTS.get(pid, []))
        if pid == 2:
            strings.error.CopyFrom(wire(error(Reason.NO_USER_MEMORY, "2 is a kernel thread")))
        if pid == 30:
            strings.error.CopyFrom(wire(error(Reason.NOT_PRESENT, "swapped out", address=0x7000)))
        return strings

    def GetStrings(self, request, context):  # noqa: N802
        self._enter("GetStrings", request, context, request.descriptor)
        if request.pid not in {1, 2, 30}:
            abort(context, error(Reason.NO_SUCH_PROCESS, f"no process {request.pid}"))
        return process_pb2.GetStringsResponse(strings=self._strings(request.pid))

    def GetInfo(self, request, context):  # noqa: N802
        self._enter("GetInfo", request, context, request.descriptor)
        return image_pb2.GetInfoResponse(
            info=image_pb2.Info(
                format="elf", live=self.live, release="6.1", page_size=4096, kaslr_offset=0x1000, phys_base=-4096,
                taint="", load_average=[0.5, 0.25, 0.125],
            )
        )  # fmt: skip

    def GetLog(self, request, context):  # noqa: N802
        self._enter("GetLog", request, context, request.descriptor)
        yield image_pb2.GetLogResponse(records=[image_pb2.LogRecord(text=b"Linux version", level=5)])
        yield image_pb2.GetLogResponse(
            records=[image_pb2.LogRecord(timestamp_ns=1234567890, sequence=1, text=b"two\nlines\x1b[31m")]
        )


@contextlib.contextmanager
def serving(path: str, fake: KvmServiceServicer) -> Iterator[str]:
    """Serve on a socket; answers the target."""
    with futures.ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool, options=[("grpc.max_send_message_length", 32 * MIB)])
        add_KvmServiceServicer_to_server(fake, server)
        server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield f"unix:{path}"
        finally:
            server.stop(0).wait()
