"""kvm_read(3)."""

from __future__ import annotations

import errno
import os

from libkvm.compat.kd import Kvm, usable
from libkvm.errors import FaultError, KvmError, Reason
from libkvm.memory import Buffer

# NetBSD's loop over a dump ends here with the bytes read so far; a translation that fails takes them back.
_ENDS_EARLY = {Reason.SHORT_FILE, Reason.CORRUPT_PAGE, Reason.SOURCE_IO}


def kvm_read(kd: Kvm | None, addr: int, buf: Buffer, nbytes: int | None = None) -> int:
    """Read kernel memory into a writable buffer: kvm_read(3).

    :param addr: a virtual address of the kernel; as C's u_long, only its low 64 bits count.
    :param nbytes: how many bytes; None: the buffer's size.
    :return: the count. On a dump, fewer where the file itself ends or is damaged. -1 on failure: the bytes before
        an address that could not be translated are in the buffer, but not counted.
    """
    with memoryview(buf) as whole, whole.cast("B") as view:
        if view.readonly:
            raise TypeError("buf is read-only")
        size = view.nbytes if nbytes is None else nbytes
        if (kd := usable(kd, "kvm_read")) is None:
            return -1
        if not 0 <= size <= view.nbytes:
            kd.soft(f"kvm_read: {os.strerror(errno.EINVAL)}", errno.EINVAL)
            return -1
        try:
            with view[:size] as part:
                return kd.kernel.readinto(addr & (2**64 - 1), part)
        except KvmError as failure:
            return _failed(kd, failure)


def kvm_read2(kd: Kvm | None, addr: int, buf: Buffer, nbytes: int | None = None) -> int:
    """Read kernel memory into a writable buffer: FreeBSD's kvm_read2(3).

    The same as :func:`kvm_read`, whose ``addr`` has 64 bits already.
    """
    return kvm_read(kd, addr, buf, nbytes)


def _failed(kd: Kvm, failure: KvmError) -> int:
    done = int(failure.metadata.get("readable", "0"))
    if kd.live and isinstance(failure, FaultError):
        # One pread(2) of the running kernel's memory: a short count, or a soft error.
        if done:
            kd.hard("short read", failure.errno)
            return done
        kd.soft(f"kvm_read: {os.strerror(failure.errno)}", failure.errno)
        return -1
    _report(kd, failure)
    return done if failure.reason in _ENDS_EARLY else -1


def _report(kd: Kvm, failure: KvmError) -> None:
    """Leave the texts of a BSD's translation and of its kvm_read: on the handle, unless it has a program, the last."""
    translator = failure.metadata.get("translator")
    if failure.metadata.get("dialect") != "freebsd":
        if translator:
            kd.soft(translator, failure.errno)
        kd.hard(failure.text, failure.errno)
        return
    if translator:
        kd.hard(translator, failure.errno)
    kd.soft(f"invalid address (0x{failure.address or 0:x})", failure.errno)
