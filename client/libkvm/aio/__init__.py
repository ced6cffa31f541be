"""libkvm.aio: the Python face of libkvm for asyncio, with the same names.

What makes a call is a coroutine, ``await kernel.info`` too; ``stream`` and ``pages`` are asynchronous iterators::

    import libkvm.aio

    async with libkvm.aio.connect() as client, client.open(corefile="vmcore") as kernel:
        print((await kernel.info).release, await kernel.symbol("jiffies"))
        for process in await kernel.processes():
            print(process.pid, process.comm)

All but the transport is generated from the synchronous face by tools/generate_aio.py; records and errors are the same.
A client belongs to the event loop in which it made its first call.
"""

from __future__ import annotations

from libkvm.aio.client import Client, connect
from libkvm.aio.kernel import Kernel
from libkvm.errors import (
    AccessError,
    CancelledError,
    DeadlineError,
    DescriptorError,
    FaultError,
    FormatError,
    InternalError,
    KvmError,
    LimitError,
    ProcessError,
    Reason,
    RequestError,
    SourceError,
    SourceNotFoundError,
    SymbolNotFoundError,
    UnavailableError,
    UnsupportedError,
)
from libkvm.records import (
    Cpu,
    CpuTimes,
    CString,
    DumpHeader,
    Frame,
    Info,
    ListElement,
    LogRecord,
    OpenFile,
    Page,
    Process,
    RangeResult,
    Stack,
    SwapArea,
    Symbol,
)

__all__ = [
    "AccessError",
    "CString",
    "CancelledError",
    "Client",
    "Cpu",
    "CpuTimes",
    "DeadlineError",
    "DescriptorError",
    "DumpHeader",
    "FaultError",
    "FormatError",
    "Frame",
    "Info",
    "InternalError",
    "Kernel",
    "KvmError",
    "LimitError",
    "ListElement",
    "LogRecord",
    "OpenFile",
    "Page",
    "Process",
    "ProcessError",
    "RangeResult",
    "Reason",
    "RequestError",
    "SourceError",
    "SourceNotFoundError",
    "Stack",
    "SwapArea",
    "Symbol",
    "SymbolNotFoundError",
    "UnavailableError",
    "UnsupportedError",
    "connect",
]
