"""The table of formats: who opens which image."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Files, Image, Kind
from kvmd.images.bsd import formats as bsd
from kvmd.images.linux import image, index, live_image, program, raw
from kvmd.images.linux.source import FileSource, Source
from kvmd.images.procfs import image as procfs


class Format(NamedTuple):
    """A family of formats.

    :ivar name: for messages.
    :ivar probe: True = mine, False = not mine; raises KvmError CORRUPT_IMAGE for mine, but damaged beyond use.
    :ivar open: opens the files; raises KvmError.
    """

    name: str
    probe: Callable[[Source], bool]
    open: Callable[[Files], Image]


def formats() -> tuple[Format, ...]:
    """The table. It is made for a dump, since what is named here runs with that (:mod:`kvmd.late`)."""
    return (
        Format("NetBSD kernel core", bsd.is_kcore, bsd.open_netbsd),
        Format("FreeBSD minidump", bsd.is_minidump, bsd.open_minidump),
        Format("FreeBSD ELF core", bsd.is_elf_core, bsd.open_elf_core),
        Format("Linux kernel dump", program.is_mine, image.LinuxImage),
    )


def open_image(files: Files) -> Image:
    """Open an image by its kind, and a dump by what its core file holds.

    Descriptors stay the caller's and must outlive the image.

    :raises KvmError: EMPTY_FILE, UNSUPPORTED_FORMAT, UNSUPPORTED without a core, and what the format raises.
    """
    if files.kind is Kind.PROCFS:
        return procfs.ProcfsImage(files)
    if files.kind is not Kind.DUMP:
        return live_image.LiveImage(files)
    if files.core is None:
        raise error(Reason.UNSUPPORTED, "a dump needs a core file")
    source = FileSource(files.core.fd)
    if source.size == 0:
        raise error(Reason.EMPTY_FILE, f"{files.core.name} is empty", path=files.core.name, strerror=os.strerror(22))
    if files.dump_offset is not None:
        return bsd.open_netbsd(files)
    for known in formats():
        if known.probe(source):
            return known.open(files)
    if bsd.is_dump_device(files):
        return bsd.open_netbsd(files)
    if raw.is_raw(source.size):
        return _open_raw(files)
    raise _unknown(files.core)


def _open_raw(files: Files) -> Image:
    """A file that could be raw memory, if a kernel is in it."""
    try:
        return image.LinuxImage(files)
    except KvmError as e:
        if e.reason is Reason.NO_VMCOREINFO and files.core is not None:
            raise _unknown(files.core, ", and no kernel was found in it that raw memory would hold") from e
        raise


def _unknown(core: File, more: str = "") -> KvmError:
    names = ", ".join(known.name for known in formats())
    message = f"{core.name} is of no format that is known ({names}){more}"
    return error(Reason.UNSUPPORTED_FORMAT, message, path=core.name)


def make_index(given: memoryview) -> bytes:
    """Make the index of a build: see :func:`kvmd.images.linux.index.make`."""
    return index.make(given)
