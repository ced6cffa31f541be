"""kvm_write(3)."""

from __future__ import annotations

import os

from libkvm.compat.kd import Kvm, usable
from libkvm.errors import AccessError, FaultError, KvmError
from libkvm.writing import Readable


def kvm_write(kd: Kvm | None, addr: int, buf: Readable | None, nbytes: int | None = None) -> int:
    """Write memory of the running kernel: kvm_write(3).

    :param addr: a virtual address of the kernel; as C's u_long, only its low 64 bits count.
    :param buf: the bytes; None only for a length of 0.
    :param nbytes: how many bytes; None: the buffer's size.
    :return: the count; on a fault, that of the bytes before it. -1 on failure: on a crash dump (even for no bytes),
        on a handle that was opened read-only (EBADF), and where the policy does not give the verb ``write``.
    """
    with memoryview(b"" if buf is None else buf) as whole, whole.cast("B") as view:
        size = view.nbytes if nbytes is None else nbytes
        if (kd := usable(kd, "kvm_write")) is None:
            return -1
        if not 0 <= size <= view.nbytes:
            kd.invalid("kvm_write")
            return -1
        try:
            with view[:size] as part:
                return kd.kernel.write(addr & (2**64 - 1), part)
        except KvmError as failure:
            return _failed(kd, failure)


def _failed(kd: Kvm, failure: KvmError) -> int:
    done = int(failure.metadata.get("written", "0"))
    if done:
        kd.hard("short write", failure.errno)
        return done
    if isinstance(failure, FaultError | AccessError):  # what pwrite(2) would have said
        kd.soft(f"kvm_write: {os.strerror(failure.errno)}", failure.errno)
    else:
        kd.hard(failure.text, failure.errno)
    return -1
