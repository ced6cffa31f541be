"""kvm_open(3), kvm_openfiles(3), kvm_open2(3)."""

from __future__ import annotations

import ctypes

from kvmd.v1.kvm_service_pb2 import OpenFilesResponse, OpenRequest, OpenResponse
from libkvm.calls import OPEN, OPEN_FILES
from libkvm.compat.connection import ask, shared
from libkvm.compat.errbuf import fill
from libkvm.compat.kd import Kvm, Resolver, complain
from libkvm.convert import failure as in_band
from libkvm.errors import KvmError, Reason, error
from libkvm.kernel import Kernel
from libkvm.names import KVM_NO_FILES, Name, Swap, open_request, source_name
from libkvm.session import Session

_O_ACCMODE = 3
_LIVE = {"", "/dev/mem", "/dev/kmem", "/proc/kcore"}


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
        return _handle(session, request, answer, errstr, None)
    except KvmError as failure:
        ctypes.set_errno(failure.errno)
        if errstr is not None:
            complain(errstr, failure.text)
        return None


def kvm_openfiles(
    execfile: Name | None, corefile: Name | None, swapfile: Swap, flags: int, errbuf: bytearray | None
) -> Kvm | None:
    """Open the running kernel or a crash dump: kvm_openfiles(3); the parameters are those of :func:`kvm_open`, but

    :param flags: also KVM_NO_FILES, which wins over every other flag and name: nothing is opened, or even looked at.
    :param errbuf: an :class:`libkvm.ErrBuf` or bytearray of POSIX2_LINE_MAX bytes; takes the text of a failure.
    :return: a handle, or None on failure.
    """
    return _open_files(execfile, corefile, swapfile, flags, errbuf, None)


def kvm_open2(
    execfile: Name | None, corefile: Name | None, flags: int, errbuf: bytearray | None, resolver: Resolver | None
) -> Kvm | None:
    """Open the running kernel or a crash dump: FreeBSD's kvm_open2(3); otherwise as :func:`kvm_openfiles`.

    :param resolver: finds symbols: answers a value, or None if there is none of this name. It must be given for a
        FreeBSD dump of another architecture than the daemon's host, and is asked for every symbol of it; of other
        images it is asked only where they have no symbols of their own, as a BSD dump without an execfile.
    """
    if resolver is not None and not callable(resolver):
        raise TypeError(f"resolver is a function or None, not {resolver!r}")
    return _open_files(execfile, corefile, None, flags, errbuf, resolver)


def _open_files(  # noqa: PLR0913, PLR0917 - what the calls of this family take together
    execfile: Name | None,
    corefile: Name | None,
    swapfile: Swap,
    flags: int,
    errbuf: bytearray | None,
    resolver: Resolver | None,
) -> Kvm | None:
    try:
        session = shared()
        request = open_request(corefile, execfile, swapfile, flags, local=session.local)
        session, answer = ask(session, OPEN_FILES, OPEN_FILES.request(open=request))
        if answer.descriptor:
            return _handle(session, request, answer, None, resolver)
    except KvmError as failure:
        ctypes.set_errno(failure.errno)
        fill(errbuf, failure.text)
        return None
    ctypes.set_errno(in_band(answer.error).errno)
    fill(errbuf, answer.errbuf)
    return None


def _handle(
    session: Session,
    request: OpenRequest,
    answer: OpenResponse | OpenFilesResponse,
    program: str | None,
    resolver: Resolver | None,
) -> Kvm:
    kernel = _kernel(session, request, answer)
    if answer.foreign and resolver is None:
        kernel.close()
        raise error(Reason.UNSUPPORTED, "non-native kernel requires a symbol resolver")
    kd = Kvm(kernel, program, live=request.corefile in _LIVE, no_files=bool(request.flags & KVM_NO_FILES))
    kd.foreign, kd.resolver = answer.foreign, resolver

    def reopen(dump_offset: int) -> Kernel:
        again = OpenRequest()
        again.CopyFrom(request)
        again.dump_offset = dump_offset
        current, opened = ask(session, OPEN, again)
        return _kernel(current, again, opened)

    kd.reopen = reopen
    return kd


def _kernel(session: Session, request: OpenRequest, answer: OpenResponse | OpenFilesResponse) -> Kernel:
    return Kernel(session, answer, source_name(request), write=bool(request.flags & _O_ACCMODE))
