"""The public names, and the tables that must agree with the wire."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import libkvm
from kvmd import errors as shared
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
from libkvm import calls, records

MANUAL = Path(__file__).parents[3] / "docs" / "man"
NAMES = """
ARG_MAX CPUSTATES CP_IDLE CP_INTR CP_NICE CP_SYS CP_USER KERN_FILE_BYFILE KERN_FILE_BYPID KERN_PROC_ALL KERN_PROC_GID
KERN_PROC_KTHREAD KERN_PROC_PGRP KERN_PROC_PID KERN_PROC_RGID KERN_PROC_RUID KERN_PROC_SESSION KERN_PROC_TTY
KERN_PROC_TTY_NODEV KERN_PROC_TTY_REVOKE KERN_PROC_UID KVM_ANY_SWAP KVM_NO_FILES N_ABS N_BSS N_DATA N_EXT N_TEXT N_UNDF
POSIX2_LINE_MAX VM_PROT_EXECUTE VM_PROT_READ VM_PROT_WRITE AccessError CString CancelledError Client Cpu CpuTimes
DeadlineError DescriptorError DumpHeader ErrBuf FaultError FormatError Frame Info InternalError Kernel KvmError
LimitError ListElement LogRecord Nlist OpenFile Page Process ProcessError RangeResult Reason RequestError SourceError
SourceNotFoundError Stack SwapArea SwapInfo Symbol SymbolNotFoundError UnavailableError UnsupportedError connect
kvm_close kvm_counter_u64_fetch kvm_dpcpu_setcpu kvm_dump_inval kvm_dump_mkheader kvm_dump_wrtheader kvm_getargv
kvm_getargv2 kvm_getcptime kvm_getenvv kvm_getenvv2 kvm_geterr kvm_getfiles kvm_getkernelname kvm_getloadavg
kvm_getlwps kvm_getmaxcpu kvm_getncpus kvm_getpcpu kvm_getproc2 kvm_getprocs kvm_getswapinfo kvm_kerndisp kvm_native
kvm_nlist kvm_nlist2 kvm_open kvm_open2 kvm_openfiles kvm_read kvm_read2 kvm_read_zpcpu kvm_uread kvm_walk_pages
kvm_write
"""


def test_the_public_names_are_these():
    assert set(NAMES.split()) == set(libkvm.__all__)
    assert len(libkvm.__all__) == len(set(libkvm.__all__))


@pytest.mark.parametrize("name", libkvm.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(libkvm, name)

    assert isinstance(value, int) or value.__doc__


@pytest.mark.parametrize("name", [name for name in libkvm.__all__ if name.startswith("kvm_")])
def test_every_call_has_a_manual_page_that_names_and_shows_it(name):
    pages = [path.read_text("utf-8") for path in MANUAL.glob("kvm_*.3.md")]
    [*_, page] = [
        page for page in pages if name in re.findall(r"\w+", page.partition(" - ")[0]) or f"{name}(kd" in page
    ]
    count = len(inspect.signature(getattr(libkvm, name)).parameters)

    shown = re.search(rf"    {name}\(([^)]*)\)|, {name}\(([^)]*)\)", page)
    assert shown
    assert len((shown[1] or shown[2]).split(",")) <= count


def test_the_constants_are_netbsds():
    assert libkvm.KVM_NO_FILES == 0x80000000
    assert libkvm.POSIX2_LINE_MAX == 2048
    assert [libkvm.KERN_PROC_ALL, libkvm.KERN_PROC_PID, libkvm.KERN_PROC_PGRP, libkvm.KERN_PROC_SESSION] == [0, 1, 2, 3]
    assert [libkvm.KERN_PROC_TTY, libkvm.KERN_PROC_UID, libkvm.KERN_PROC_RUID] == [4, 5, 6]
    assert [libkvm.KERN_PROC_GID, libkvm.KERN_PROC_RGID] == [7, 8]
    assert [libkvm.KERN_PROC_TTY_NODEV, libkvm.KERN_PROC_TTY_REVOKE] == [-1, -2]


def test_kernel_threads_have_a_number_of_their_own():
    numbers = [getattr(libkvm, name) for name in libkvm.__all__ if name.startswith("KERN_PROC_")]

    assert numbers.count(libkvm.KERN_PROC_KTHREAD) == 1
    assert libkvm.KERN_PROC_KTHREAD & 0x400000FF == 0  # operations and modifiers of the BSDs


def test_every_exception_of_the_table_is_exported():
    kinds = {row.kind for row in shared.TABLE.values()}

    assert kinds <= {getattr(libkvm, name) for name in libkvm.__all__}


@pytest.mark.parametrize("name", [calls.SERVICE, calls.ADMIN])
def test_the_call_table_agrees_with_the_service(name):
    files = {calls.SERVICE: kvm_service_pb2, calls.ADMIN: admin_pb2}
    service = files[name].DESCRIPTOR.services_by_name[name.rpartition(".")[2]]
    every = [value for value in vars(calls).values() if isinstance(value, calls.Call)]
    table = [call for call in every if call.service == name]

    assert service.full_name == name
    assert {call.name for call in table} == set(service.methods_by_name)
    for call in table:
        method = service.methods_by_name[call.name]
        assert method.input_type == call.request.DESCRIPTOR
        assert method.output_type == call.answer.DESCRIPTOR


@pytest.mark.parametrize(
    ("cls", "message", "left_out"),
    [
        (records.Info, image_pb2.Info, set()),
        (records.LogRecord, image_pb2.LogRecord, set()),
        (records.ListElement, batch_pb2.ListElement, set()),
        (records.CString, batch_pb2.CString, set()),
        (records.RangeResult, memory_pb2.RangeResult, {"plain_length"}),
        (records.Symbol, symbol_pb2.Symbol, {"found"}),
        (records.Process, process_pb2.Process, set()),
        (records.Page, memory_pb2.Page, set()),
        (records.Cpu, system_pb2.Cpu, set()),
        (records.CpuTimes, system_pb2.CpuTimes, set()),
        (records.SwapArea, system_pb2.SwapArea, set()),
        (records.OpenFile, system_pb2.OpenFile, set()),
        (records.Frame, stack_pb2.Frame, set()),
        (records.Stack, stack_pb2.Stack, set()),
    ],
)
def test_records_have_the_fields_of_their_messages(cls, message, left_out):
    names = {field.metadata.get("wire", field.name).partition(".")[0] for field in dataclasses.fields(cls)}

    assert names == set(message.DESCRIPTOR.fields_by_name) - left_out


def test_importing_libkvm_does_not_import_grpc_or_the_daemon():
    code = "import libkvm.aio, sys; print([m for m in sys.modules if m == 'grpc' or m.startswith(('kvmd.', 'drgn'))])"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert "'grpc'" not in loaded
    assert all(name.startswith(("kvmd.v1", "kvmd.errors", "kvmd.fast")) for name in eval(loaded))
