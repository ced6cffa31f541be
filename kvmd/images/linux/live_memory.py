"""The running kernel's memory as a drgn Program, by /proc/kcore or by /dev/mem.

drgn's own reader of /proc/kcore looks at file systems and opens files; here it gets functions that read descriptors,
as for dumps. Physical memory comes from the file. Virtual addresses go through the kernel's page tables, but for the
direct mapping of /proc/kcore's RAM, where the process list lies: that saves four reads of five.
"""

from __future__ import annotations

import os
import re

from drgn import Architecture, FaultError

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Files, Kind
from kvmd.images.linux import elf, live_devmem
from kvmd.images.linux.live_files import whole
from kvmd.images.linux.live_kcore import Kcore, headers
from kvmd.images.linux.program import ARCHITECTURES, Dump, PhysicalRead, custom

_PLACE = re.compile(rb"\s*(?:0x)?([0-9a-f]{1,16}) ([0-9a-f]{1,8})\s*")
_MAX_NOTE = 1 << 20


def open_live(files: Files) -> Dump:
    """Open the running kernel's memory; descriptors stay the caller's.

    :raises KvmError: NO_VMCOREINFO, STRICT_DEVMEM, NO_LIVE_SOURCE, UNSUPPORTED_FORMAT, SOURCE_IO, CORRUPT_IMAGE.
    """
    if files.core is None:
        raise error(Reason.BAD_ARGUMENT, "the running kernel needs /proc/kcore or /dev/mem")
    return _by_mem(files, files.core) if files.kind is Kind.MEM else _by_kcore(files.core)


def _architecture() -> Architecture:
    machine = os.uname().machine
    try:
        return ARCHITECTURES[machine]
    except KeyError:
        raise error(Reason.UNSUPPORTED_FORMAT, f"a {machine!r} machine, which is not supported") from None


def _by_kcore(core: File) -> Dump:
    layout = Kcore(core)
    if not layout.vmcoreinfo:
        message = "/proc/kcore has no VMCOREINFO note: the kernel is older than 4.19, or lacks CONFIG_VMCORE_INFO"
        raise error(Reason.NO_VMCOREINFO, message, path=core.name)
    architecture = ARCHITECTURES.get(layout.headers.machine) or _architecture()
    dump = custom(architecture, layout, layout.read, layout.vmcoreinfo, live=True)
    for virtual, length, physical in layout.headers.direct:
        dump.prog.add_memory_segment(virtual, length, _direct(layout.read, virtual, physical), False)
    return dump


def _direct(read: PhysicalRead, virtual: int, physical: int) -> PhysicalRead:
    """Reads of the direct mapping as reads of what it maps."""

    def direct(address: int, length: int, offset: int, _physical: bool) -> bytes:
        try:
            return read(address - virtual + physical, length, offset, True)
        except FaultError as e:
            raise FaultError(str(e), e.address - physical + virtual) from e

    return direct


def _by_mem(files: Files, core: File) -> Dump:
    layout = live_devmem.DevMem(core, live_devmem.Ram(files.extra.get("iomem"), files.extra.get("kcore")))
    layout.vmcoreinfo = _note(files, layout)
    return custom(_architecture(), layout, layout.read, layout.vmcoreinfo, live=True)


def _note(files: Files, layout: live_devmem.DevMem) -> bytes:
    """The VMCOREINFO text: from /proc/kcore's note, else from where /sys/kernel/vmcoreinfo says that it lies."""
    kcore, place = files.extra.get("kcore"), files.extra.get("vmcoreinfo")
    try:
        if kcore is not None and (text := headers(kcore.fd).vmcoreinfo):
            return text
    except KvmError:
        if place is None:
            raise
    found = _PLACE.fullmatch(whole(place, _MAX_NOTE)) if place is not None else None
    if found is not None and 0 < (length := int(found[2], 16)) <= _MAX_NOTE:
        for name, _, text in elf.notes(layout.read(int(found[1], 16), length, 0, True)):
            if name == b"VMCOREINFO":
                return text
    raise error(Reason.NO_VMCOREINFO, "neither /proc/kcore nor /sys/kernel/vmcoreinfo gives the kernel's VMCOREINFO")
