"""kvm_dump_mkheader(3), kvm_dump_wrtheader(3), kvm_dump_inval(3): NetBSD's calls for savecore(8).

They make a file of the dump that a NetBSD kernel left on its dump device, of which kvmd reads an image. Linux writes
files that are ready to use, and kvmd writes to no dump: what can't be is refused as libkvm does.
"""

from __future__ import annotations

import errno
import os
from typing import IO

from libkvm.compat.kd import Kvm, open_handle
from libkvm.errors import FormatError, KvmError, Reason, UnsupportedError

_MOST_OFFSET = 2**63  # of an off_t


def kvm_dump_mkheader(kd: Kvm | None, dump_off: int) -> int:
    """Find the dump on a dump device and make its header, so that it can be read: kvm_dump_mkheader(3).

    :param dump_off: where the kernel left it, in bytes from the start of the device's image.
    :return: the size of what the kernel wrote before the memory; 0 if there is no dump (``invalid magic in cpu_hdr``,
        a soft error); -1 on failure: ``already has a dump header`` of every other dump, ``don't use on live kernel``,
        or what is wrong with it.
    """
    if (kd := open_handle(kd)) is None:
        return -1
    if kd.live:
        kd.hard("don't use on live kernel", errno.EINVAL)
        return -1
    if not 0 <= dump_off < _MOST_OFFSET:
        kd.invalid("kvm_dump_mkheader")
        return -1
    try:
        return -1 if _has_header(kd) else _make_header(kd, dump_off)
    except KvmError as failure:
        kd.hard(failure.text, failure.errno)
        return -1


def _has_header(kd: Kvm) -> bool:
    try:
        kd.kernel.dump_header()
    except UnsupportedError:
        pass  # a dump of another kind, which has all that it needs
    except FormatError as failure:
        if failure.reason is Reason.NO_DUMP_HEADER:
            return False
        raise
    kd.hard("already has a dump header", errno.EINVAL)
    return True


def _make_header(kd: Kvm, dump_off: int) -> int:
    try:
        kernel = kd.reopen(dump_off)
    except FormatError as failure:
        if failure.reason is not Reason.UNSUPPORTED_FORMAT:
            raise
        kd.soft(failure.text, failure.errno)
        return 0
    header = kernel.dump_header()
    before, kd.kernel = kd.kernel, kernel
    before.close()
    return header.device_bytes


def kvm_dump_wrtheader(kd: Kvm | None, fp: IO[bytes], dumpsize: int) -> int:
    """Write the header of a NetBSD dump's file: kvm_dump_wrtheader(3). Memory is to follow, which the caller writes.

    :param fp: a binary file, at its start; it is not sought in.
    :param dumpsize: the size of the memory in bytes, of which the header has room for the low 32 bits.
    :return: how many bytes were written, which is where the memory begins; -1 on failure: ``no valid dump header(s)``
        of a dump device without :func:`kvm_dump_mkheader` and of every other system's dump.
    """
    if (kd := open_handle(kd)) is None:
        return -1
    if dumpsize < 0:
        kd.invalid("kvm_dump_wrtheader")
        return -1
    try:
        header = kd.kernel.dump_header(dumpsize % 2**64).header
        fp.write(header)
    except (FormatError, UnsupportedError):
        kd.hard("no valid dump header(s)", errno.EINVAL)
    except KvmError as failure:
        kd.hard(failure.text, failure.errno)
    except OSError as failure:
        number = failure.errno or errno.EIO
        kd.hard(f"kvm_dump_header: {os.strerror(number)}", number)
    else:
        return len(header)
    return -1


def kvm_dump_inval(kd: Kvm | None) -> int:
    """Mark a dump so that it is not saved again: kvm_dump_inval(3). As kvmd writes to no dump, it always fails.

    :return: -1: ``clearing dump on live kernel``; ``bad namelist`` of a dump without the symbol ``dumpmag``, as all
        but NetBSD's are; else ``cannot invalidate dump - pwrite`` and why (EROFS).
    """
    if (kd := open_handle(kd)) is None:
        return -1
    if kd.live:
        kd.hard("clearing dump on live kernel", errno.EINVAL)
        return -1
    try:
        found = kd.kernel.symbols(["dumpmag"])["dumpmag"]
    except KvmError:
        found = None
    if found is None:
        kd.hard("bad namelist", errno.EINVAL)
    else:
        kd.hard(f"cannot invalidate dump - pwrite: {os.strerror(errno.EROFS)}", errno.EROFS)
    return -1
