"""kvm_getfiles(3)."""

from __future__ import annotations

from libkvm.compat.constants import KERN_FILE_BYFILE, KERN_FILE_BYPID
from libkvm.compat.kd import Kvm, usable
from libkvm.records import OpenFile


def kvm_getfiles(kd: Kvm | None, op: int = 0, arg: int = 0) -> list[OpenFile] | None:
    """List open files: kvm_getfiles(3).

    :param op: 0 or KERN_FILE_BYFILE: those of all processes; KERN_FILE_BYPID: those of the process ``arg``.
    :return: a record for each descriptor, by ascending pid and fd; None on failure. Another ``op`` is EINVAL.
    """
    if (kd := usable(kd, "kvm_getfiles")) is None:
        return None
    if op not in {0, KERN_FILE_BYFILE, KERN_FILE_BYPID}:
        kd.invalid("kvm_getfiles")
        return None
    return kd.asked(lambda kernel: kernel.files(arg if op == KERN_FILE_BYPID else None))
