"""Which files are a BSD dump, and how each is opened: rows for the table of formats."""

from __future__ import annotations

from collections.abc import Callable

from kvmd.errors import FormatError, Reason, error
from kvmd.images.base import File, Files
from kvmd.images.bsd import elfcore, kcore, minidump, minidump_amd64, minidump_arm64
from kvmd.images.bsd.core import Core
from kvmd.images.bsd.elfcore import FreebsdElfCore
from kvmd.images.bsd.image import BsdImage
from kvmd.images.bsd.minidump_amd64 import Amd64Minidump
from kvmd.images.bsd.minidump_arm64 import Arm64Minidump
from kvmd.images.bsd.namelist import NameList
from kvmd.images.bsd.netbsd import NetbsdCore
from kvmd.images.linux.source import FileSource, Source

_MINIDUMPS: dict[bytes, Callable[[Source], Core]] = {
    minidump_amd64.MAGIC: Amd64Minidump,
    minidump_arm64.MAGIC: Arm64Minidump,
}


def is_kcore(source: Source) -> bool:
    """Whether the file begins with a magic of kcore(5)."""
    head = source.read(0, 4)
    return len(head) == 4 and kcore.magic(head)[2] == kcore.KCORE


def is_dump_device(files: Files) -> bool:
    """Whether a file of no known format is to be taken for a dump device's image: the execfile is NetBSD's."""
    return files.exec is not None and FileSource(files.exec.fd).read(0, 4) == b"\x7fELF" and NameList(files.exec).netbsd


def open_netbsd(files: Files) -> BsdImage:
    """Open a kernel core, or a dump device's image.

    Without a header that makes sense the image opens as NetBSD's libkvm has it, good for names and for
    kvm_dump_mkheader(3) alone, if it is a device's or the execfile says that it is NetBSD's.

    :raises KvmError: as :mod:`~kvmd.images.bsd.kcore`; EXEC_NOT_ELF, EXEC_FOREIGN.
    """
    file, names = _given(files)
    source = FileSource(file.fd)
    try:
        place = files.dump_offset
        headers = kcore.in_file(source) if place is None else kcore.on_device(source, place)
        core: Core | None = NetbsdCore(source, headers)
    except FormatError as e:
        device = kcore.has_device_form(source.read(0, 8)) or (names is not None and names.netbsd)
        if files.dump_offset is not None or not device:
            e.metadata.setdefault("path", file.name)
            raise
        core = None
    return BsdImage(source, core, names)


def is_minidump(source: Source) -> bool:
    """Whether the file begins as minidumps do, of whatever BSD and architecture."""
    return source.read(0, len(minidump.MAGIC)) == minidump.MAGIC


def open_minidump(files: Files) -> BsdImage:
    """Open a FreeBSD minidump.

    :raises KvmError: as :mod:`~kvmd.images.bsd.minidump`; EXEC_NOT_ELF, EXEC_FOREIGN.
    """
    file, names = _given(files)
    source = FileSource(file.fd)
    kind = _MINIDUMPS.get(source.read(0, 24).rstrip(b"\0"))
    if kind is None:
        raise error(Reason.UNSUPPORTED_FORMAT, "not a minidump for this platform", path=file.name)
    return BsdImage(source, kind(source), names)


def is_elf_core(source: Source) -> bool:
    """Whether the file is FreeBSD's ELF core."""
    return elfcore.is_mine(source)


def open_elf_core(files: Files) -> BsdImage:
    """Open a FreeBSD full dump.

    :raises KvmError: as :class:`~kvmd.images.bsd.elfcore.FreebsdElfCore`; EXEC_NOT_ELF, EXEC_FOREIGN.
    """
    file, names = _given(files)
    source = FileSource(file.fd)
    return BsdImage(source, FreebsdElfCore(source, names), names)


def _given(files: Files) -> tuple[File, NameList | None]:
    if files.core is None:
        raise error(Reason.BAD_ARGUMENT, "a dump needs a core file")
    if files.writable:
        raise error(Reason.UNSUPPORTED, "a crash dump can't be written", path=files.core.name)
    return files.core, NameList(files.exec) if files.exec else None
