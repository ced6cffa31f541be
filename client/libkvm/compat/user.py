"""kvm_uread(3)."""

from __future__ import annotations

from libkvm.compat.kd import Kvm, usable
from libkvm.errors import FaultError, KvmError
from libkvm.memory import Buffer
from libkvm.records import Process


def kvm_uread(kd: Kvm | None, proc: Process | int, uva: int, buf: Buffer, nbytes: int | None = None) -> int:
    """Read memory of a process, of a dump too: kvm_uread(3) of NetBSD 6.

    :param proc: a process of kvm_getprocs(3), or its id, as DragonFly takes it.
    :param uva: a virtual address of that process's; only its low 64 bits count.
    :param nbytes: how many bytes; None: the buffer's size.
    :return: the count, which is all of them; 0 on failure, with the soft error ``invalid address (fault)`` where no
        page is, and what keeps it where one was swapped out. The bytes before it are in the buffer.
    """
    with memoryview(buf) as whole, whole.cast("B") as view:
        if view.readonly:
            raise TypeError("buf is read-only")
        size = view.nbytes if nbytes is None else nbytes
        if (kd := usable(kd, "kvm_uread")) is None:
            return 0
        if not 0 <= size <= view.nbytes:
            kd.invalid("kvm_uread")
            return 0
        pid = proc.pid if isinstance(proc, Process) else proc
        try:
            with view[:size] as part:
                return kd.kernel.readinto(uva & (2**64 - 1), part, pid=pid)
        except FaultError as fault:
            kd.fault(fault)
        except KvmError as failure:
            kd.soft(failure.text, failure.errno)
        return 0
