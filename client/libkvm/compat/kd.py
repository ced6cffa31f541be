"""The handle of the C-style face and where its errors go: libkvm's error model."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from libkvm.compat.errbuf import cut
from libkvm.errors import FaultError, KvmError, Reason
from libkvm.kernel import Kernel
from libkvm.printable import printable

T = TypeVar("T")
Resolver = Callable[[str], int | None]
"""Answers the value of a symbol, None if there is none of this name."""


class Kvm:
    """What kvm_open(3) answers; opaque to callers.

    :ivar kernel: the opened image.
    :ivar program: errstr of kvm_open, or None: hard errors then go to the handle as soft ones do.
    :ivar live: whether it is the running kernel's memory.
    :ivar no_files: whether it was opened with KVM_NO_FILES.
    :ivar foreign: whether it is a FreeBSD dump of another architecture than the daemon's.
    :ivar resolver: the function of kvm_open2(3) that finds symbols; None: there is none.
    :ivar reopen: opens a dump device's image again, with a dump at an offset.
    :ivar cpu_offset: of the CPU that kvm_dpcpu_setcpu(3) selected; None: of none.
    """

    foreign = False
    resolver: Resolver | None = None
    reopen: Callable[[int], Kernel]

    def __init__(self, kernel: Kernel, program: str | None, *, live: bool, no_files: bool) -> None:
        self.kernel = kernel
        self.program = program
        self.live = live
        self.no_files = no_files
        self.cpu_offset: int | None = None
        self._text = b""
        self._lock = threading.Lock()

    @property
    def text(self) -> str:
        """The text of the last error; a success leaves an older one."""
        with self._lock:
            return self._text.decode("utf-8", "replace")

    def hard(self, text: str, number: int) -> None:
        """Report an error: on stderr if the handle has a program's name, else on the handle."""
        if self.program is None:
            self.soft(text, number)
        else:
            ctypes.set_errno(number)
            complain(self.program, text)

    def fault(self, fault: FaultError) -> None:
        """Put a soft error where a process's memory is not there; why, if it was swapped out."""
        gone = fault.reason is not Reason.NOT_PRESENT
        self.soft(f"invalid address ({fault.address or 0:x})" if gone else fault.text, fault.errno)

    def soft(self, text: str, number: int) -> None:
        """Report an error on the handle: those that a debugger's probing would flood stderr with."""
        ctypes.set_errno(number)
        with self._lock:
            self._text = cut(text)

    def invalid(self, call: str) -> None:
        """Report an argument that makes no sense."""
        self.hard(f"{call}: {os.strerror(errno.EINVAL)}", errno.EINVAL)

    def asked(self, question: Callable[[Kernel], T]) -> T | None:
        """Answer a question to the image; None if it fails, which is then reported as a hard error."""
        try:
            return question(self.kernel)
        except KvmError as failure:
            self.hard(failure.text, failure.errno)
            return None

    def __repr__(self) -> str:
        return repr(self.kernel).replace("libkvm.Kernel", "libkvm.Kvm")


def complain(program: str, text: str) -> None:
    """Write ``program: text`` to stderr."""
    if sys.stderr is not None:  # print() would take stdout then
        print(f"{program}: {printable(text)}", file=sys.stderr)  # noqa: T201 - what kvm_open(3) does


def open_handle(kd: Kvm | None) -> Kvm | None:
    """Answer the handle if it can be used; else leave EINVAL (None) or EBADF (closed)."""
    if kd is None:
        ctypes.set_errno(errno.EINVAL)
        return None
    if kd.kernel.closed:
        kd.soft(os.strerror(errno.EBADF), errno.EBADF)
        return None
    return kd


def usable(kd: Kvm | None, call: str) -> Kvm | None:
    """Answer the handle if it can be used for a call that needs kernel memory; else leave the error."""
    if (kd := open_handle(kd)) is not None and kd.no_files:
        kd.hard(f"kvm_open called with KVM_NO_FILES, can't use {call}", errno.EINVAL)
        return None
    return kd


def kvm_close(kd: Kvm | None) -> int:
    """Close a handle: kvm_close(3).

    :return: 0; -1 for None (errno EINVAL), for a handle that is closed already (EBADF) and on failure.
    """
    if open_handle(kd) is None or kd is None:
        return -1
    try:
        kd.kernel.close()
    except KvmError as failure:
        kd.hard(failure.text, failure.errno)
        return -1
    return 0


def kvm_geterr(kd: Kvm | None) -> str:
    """Answer the text of the handle's last error: kvm_geterr(3); at most 2047 bytes, never cleared by success.

    :return: the text; empty if there was none, and for None.
    """
    return "" if kd is None else kd.text


def kvm_getkernelname(kd: Kvm | None) -> str:
    """Answer the name of the namelist in use: kvm_getkernelname(3); empty for None and KVM_NO_FILES."""
    return "" if kd is None or kd.no_files else kd.kernel.kernel_name
