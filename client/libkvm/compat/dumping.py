"""kvm_dump_mkheader(3), kvm_dump_wrtheader(3), kvm_dump_inval(3): NetBSD's calls for savecore(8).

They prepare a dump that a BSD kernel left on its dump device. Linux writes files that are ready to use, so there is
nothing to make, and kvmd writes to no dump: each call answers as libkvm does where it must refuse.
"""

from __future__ import annotations

import errno
import os
from typing import IO

from libkvm.compat.kd import Kvm, open_handle


def kvm_dump_mkheader(kd: Kvm | None, dump_off: int) -> int:
    """Make the header of a dump: kvm_dump_mkheader(3).

    :return: -1: ``don't use on live kernel``; of a dump, which opens only with one, ``already has a dump header``.
    """
    if (kd := open_handle(kd)) is not None:
        kd.hard("don't use on live kernel" if kd.live else "already has a dump header", errno.EINVAL)
    return -1


def kvm_dump_wrtheader(kd: Kvm | None, fp: IO[bytes], dumpsize: int) -> int:
    """Write the header that :func:`kvm_dump_mkheader` made: kvm_dump_wrtheader(3).

    :return: -1: ``no valid dump header(s)``. Nothing is written to ``fp``.
    """
    if (kd := open_handle(kd)) is not None:
        kd.hard("no valid dump header(s)", errno.EINVAL)
    return -1


def kvm_dump_inval(kd: Kvm | None) -> int:
    """Mark a dump so that it is not saved again: kvm_dump_inval(3).

    :return: -1: ``clearing dump on live kernel``; of a dump, ``cannot invalidate dump - pwrite`` and why (EROFS).
    """
    if (kd := open_handle(kd)) is not None:
        if kd.live:
            kd.hard("clearing dump on live kernel", errno.EINVAL)
        else:
            kd.hard(f"cannot invalidate dump - pwrite: {os.strerror(errno.EROFS)}", errno.EROFS)
    return -1
