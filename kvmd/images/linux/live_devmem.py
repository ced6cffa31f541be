"""/dev/mem: physical memory at its address as the offset; only RAM is touched.

Source: mem(4); Linux drivers/char/mem.c: with CONFIG_STRICT_DEVMEM a read of RAM fails with EPERM, but in the first
megabyte, where it gives zeroes; so whether RAM may be read is tried above that when the image is opened. Reading
a device's registers can do anything, up to hanging the machine: /proc/iomem says what is RAM (Linux kernel/resource.c).
"""

from __future__ import annotations

import errno
import os
import re
import time

from drgn import FaultError

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux.layout import PAGE
from kvmd.images.linux.live_files import whole
from kvmd.images.linux.live_kcore import headers
from kvmd.images.linux.live_ranges import Range, Ranges

_LINE = re.compile(rb"^ *([0-9a-f]{1,16})-([0-9a-f]{1,16}) : System RAM(?: \([^\n]*\))?$", re.M)
_MAX_IOMEM = 4 << 20
_FRESH = 1.0
_FIRST_JUDGED = 16 << 20


def strict_devmem(address: int) -> KvmError:
    """The error for RAM that the kernel does not give or take through /dev/mem."""
    message = (
        "this kernel keeps RAM out of /dev/mem (CONFIG_STRICT_DEVMEM); read it by /proc/kcore: open with no corefile"
    )
    return error(Reason.STRICT_DEVMEM, message, path="/dev/mem", address=address, errno="EPERM")


def ram(text: bytes) -> Ranges:
    """The ranges of System RAM in /proc/iomem's text.

    :raises KvmError: NO_LIVE_SOURCE if there are none, or only such as hide their addresses.
    """
    pairs = [(int(low, 16), int(high, 16)) for low, high in _LINE.findall(text)]
    found = Ranges(Range(low, high + 1, low) for low, high in pairs if 0 <= low < high < 1 << 56)
    if not len(found):
        why = "hides its addresses: the daemon needs CAP_SYS_ADMIN" if pairs else "lists no System RAM"
        message = f"/proc/iomem {why}; without it RAM can't be told from devices"
        raise error(Reason.NO_LIVE_SOURCE, message, path="/proc/iomem")
    return found


class Ram:
    """Which physical addresses are RAM, asked again when the answer is a second old.

    :param iomem: /proc/iomem, whose addresses are zero unless who opened it had CAP_SYS_ADMIN.
    :param kcore: /proc/kcore, whose headers say the same; used where the other is of no use.
    """

    def __init__(self, iomem: File | None, kcore: File | None) -> None:
        self._iomem, self._kcore = iomem, kcore
        self._ranges = self._read()
        self._read_at = time.monotonic()

    def _read(self) -> Ranges:
        try:
            if self._iomem is not None:
                return ram(whole(self._iomem, _MAX_IOMEM))
        except KvmError:
            if self._kcore is None:
                raise
        if self._kcore is not None:
            return Ranges(Range(r.start, r.end, r.start) for r in headers(self._kcore.fd).ram)
        message = "neither /proc/iomem nor /proc/kcore can be read: RAM can't be told from devices"
        raise error(Reason.NO_LIVE_SOURCE, message, path="/proc/iomem")

    def ranges(self) -> Ranges:
        """The ranges as they are now.

        :raises KvmError: NO_LIVE_SOURCE, SOURCE_IO; what :func:`~kvmd.images.linux.live_kcore.headers` raises.
        """
        if time.monotonic() - self._read_at >= _FRESH:
            self._ranges, self._read_at = self._read(), time.monotonic()
        return self._ranges


class DevMem:
    """Physical memory by /dev/mem, as a :class:`~kvmd.images.linux.layout.Layout`.

    :param ram: tells what may be touched.
    :ivar vmcoreinfo: to be set by who knows it: /dev/mem doesn't say.
    :raises KvmError: STRICT_DEVMEM, NO_LIVE_SOURCE, SOURCE_IO.
    """

    page_size = PAGE
    format = "mem"
    notes = b""

    def __init__(self, file: File, ram: Ram) -> None:
        self._fd = file.fd
        self._ram = ram
        self.vmcoreinfo = b""
        self._try()

    def _try(self) -> None:
        for item in self._ram.ranges():
            address = max(item.start, _FIRST_JUDGED)
            if address < item.end:
                self._pread(address, 1)
                return

    def trouble(self, address: int) -> Reason | None:
        """See :class:`~kvmd.images.linux.layout.Layout`."""
        return None if self._ram.ranges().find(address) else Reason.BEYOND_DUMP

    def read(self, address: int, length: int, _offset: int, _physical: bool) -> bytes:
        """Read physical memory; the signature is that of drgn's memory segments.

        :raises drgn.FaultError: at the first byte that is no RAM.
        """
        parts: list[bytes] = []
        ranges = self._ram.ranges()
        while length > 0:
            found = ranges.find(address)
            if found is None:
                raise FaultError("no RAM", address)
            part = self._pread(address, min(length, found.end - address))
            if not part:
                raise FaultError("/dev/mem ends here", address)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return b"".join(parts)

    def _pread(self, address: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, address)
        except OSError as e:
            if e.errno == errno.EFAULT:
                raise FaultError("the kernel can't read the page", address) from e
            if e.errno == errno.EPERM:
                raise strict_devmem(address) from e
            raise error(
                Reason.SOURCE_IO,
                f"/dev/mem can't be read: {e.strerror}",
                errno=errno.errorcode.get(e.errno or 0, "EIO"),
            ) from e
