"""kvm_open(3), kvm_openfiles(3), kvm_open2(3)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from kvmd.v1.kvm_service_pb2 import OpenRequest
from libkvm.calls import OPEN, OPEN_FILES
from libkvm.compat.connection import ask, shared
from libkvm.compat.errbuf import fill
from libkvm.compat.kd import Kvm, complain
from libkvm.convert import failure as in_band
from libkvm.errors import KvmError
from libkvm.kernel import Kernel
from libkvm.names import KVM_NO_FILES, Name, Swap, open_request, source_name
from libkvm.session import Session

_O_ACCMODE = 3
_LIVE = {"", "/dev/mem", "/dev/kmem", "/proc/kcore"}

Resolver = Callable[[str], int | None]


def kvm_open(
    execfile: Name | None, corefile: Name | None, swapfile: Swap, flags: int, errstr: str | None
) -> Kvm | None:
    """Open the running kernel or a crash dump: kvm_open(3).

    :param execfile: the kernel's file with symbols; None: what the image itself holds.
    :param corefile: the dump; None: the running kernel.
    :param swapfile: the swap areas of a dump, joined by ``:``; None: those of the running kernel.
    :param flags: O_RDONLY or O_RDWR.
    :param errstr: errors of this call, and later hard ones, go to stderr as ``errstr: text``; None: nowhere.
    :return: a handle, or None on failure.
    """
    try:
        session = shared()
        request = open_request(corefile, execfile, swapfile, flags, local=session.local)
        session, answer = ask(session, OPEN, request)
    except KvmError as failure:
        ctypes.set_errno(failure.errno)
        if errstr is not None:
            complain(errstr, failure.text)
        return None
    return _handle(session, request, answer.descriptor, answer.kernel_name, errstr)


def kvm_openfiles(
    execfile: Name | None, corefile: Name | None, swapfile: Swap, flags: int, errbuf: bytearray | None
) -> Kvm | None:
    """Open the running kernel or a crash dump: kvm_openfiles(3); the parameters are those of :func:`kvm_open`, but

    :param flags: also KVM_NO_FILES, which wins over every other flag and name: nothing is opened, or even looked at.
    :param errbuf: an :class:`libkvm.ErrBuf` or bytearray of POSIX2_LINE_MAX bytes; takes the text of a failure.
    :return: a handle, or None on failure.
    """
    try:
        session = shared()
        request = open_request(corefile, execfile, swapfile, flags, local=session.local)
        session, answer = ask(session, OPEN_FILES, OPEN_FILES.request(open=request))
    except KvmError as failure:
        ctypes.set_errno(failure.errno)
        fill(errbuf, failure.text)
        return None
    if not answer.descriptor:
        ctypes.set_errno(in_band(answer.error).errno)
        fill(errbuf, answer.errbuf)
        return None
    return _handle(session, request, answer.descriptor, answer.kernel_name, None)


def kvm_open2(
    execfile: Name | None, corefile: Name | None, flags: int, errbuf: bytearray | None, resolver: Resolver | None
) -> Kvm | None:
    """Open the running kernel or a crash dump: FreeBSD's kvm_open2(3); otherwise as :func:`kvm_openfiles`.

    :param resolver: finds symbols of kernels that are not native; kvmd finds those of every image that it opens
        itself and does not call it.
    """
    if resolver is not None and not callable(resolver):
        raise TypeError(f"resolver is a function or None, not {resolver!r}")
    return kvm_openfiles(execfile, corefile, None, flags, errbuf)


def _handle(session: Session, request: OpenRequest, descriptor: str, name: str, program: str | None) -> Kvm:
    write = bool(request.flags & _O_ACCMODE)
    kernel = Kernel(session, descriptor, source_name(request), write=write, name=name)
    return Kvm(kernel, program, live=request.corefile in _LIVE, no_files=bool(request.flags & KVM_NO_FILES))
