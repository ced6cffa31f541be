"""kvm_native(3), kvm_kerndisp(3)."""

from __future__ import annotations

from libkvm.compat.kd import Kvm, open_handle, usable


def kvm_native(kd: Kvm | None) -> int:
    """Tell whether an image can be read as this library's own kind: FreeBSD's kvm_native(3).

    :return: 0 for a FreeBSD dump of another architecture than the daemon's host, for None and for a closed handle;
        1 for all else: the daemon understands every image that it opens.
    """
    return 0 if (kd := open_handle(kd)) is None or kd.foreign else 1


def kvm_kerndisp(kd: Kvm | None) -> int:
    """Answer how far the kernel lies from where it was linked: FreeBSD's kvm_kerndisp(3).

    :return: KASLR's displacement in bytes; 0 if there is none, if the image does not tell, and on failure.
    """
    if (kd := usable(kd, "kvm_kerndisp")) is None:
        return 0
    info = kd.asked(lambda kernel: kernel.info)
    return 0 if info is None else info.kaslr_offset or 0
