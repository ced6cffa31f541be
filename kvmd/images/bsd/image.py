"""An opened BSD dump, as the worker sees it (:class:`kvmd.images.base.Image`).

It reads memory and names. What needs the layout of kernel structures is refused: a BSD dump doesn't tell it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NoReturn

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import ByteOrder
from kvmd.images.bsd.core import Core, read
from kvmd.images.bsd.namelist import NameList
from kvmd.images.bsd.netbsd import NetbsdCore
from kvmd.images.linux.source import Source
from kvmd.images.linux.symbols import to_wire
from kvmd.v1 import image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2

_HOST = os.uname().machine
_MOST_TEXT = 1024
_LOADAVG = struct.Struct("<3I4xq")  # struct loadavg of sys/resource.h of both: u32 ldavg[3], long fscale


class BsdImage:
    """A crash dump of NetBSD or FreeBSD.

    :param core: the dump; None: a NetBSD dump device's image, whose dump has not been found yet.
    :raises KvmError: EXEC_FOREIGN.
    """

    byte_order: ByteOrder = "little"

    def __init__(self, source: Source, core: Core | None, names: NameList | None) -> None:
        self._source, self._opened, self._names = source, core, names
        if core is not None and names is not None:
            names.check(core.machine)

    @property
    def _core(self) -> Core:
        if self._opened is None:
            message = "the image of a dump device has no valid dump header; kvm_dump_mkheader() makes one"
            raise error(Reason.NO_DUMP_HEADER, message)
        return self._opened

    @property
    def _netbsd(self) -> bool:
        return self._opened is None or isinstance(self._opened, NetbsdCore)

    def info(self) -> image_pb2.Info:
        """See :class:`~kvmd.images.base.Image`."""
        known = image_pb2.Info(format="netbsd-dump-device", machine=self._names.machine if self._names else "")
        if self._opened is not None:
            known = image_pb2.Info(
                format=self._core.format, machine=self._core.machine, page_size=self._core.page_size
            )  # fmt: skip
            known.release = self._text("osrelease")
            known.banner = self._text("version").partition("\n")[0]
            if panic := self._panic():
                known.panic_message = panic
        known.symbols = "execfile" if self._names else ""
        return known

    def kernel_name(self) -> str:
        """The execfile's name; empty if none was named."""
        return self._names.file.name if self._names else ""

    def foreign(self) -> bool:
        """See :class:`~kvmd.images.base.Image`."""
        return not self._netbsd and self._core.machine != _HOST

    def read_into(self, address: int, into: memoryview, space: memory_pb2.AddressSpace) -> bool:
        """See :class:`~kvmd.images.base.Image`."""
        return False

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace, pid: int = 0) -> bytes:
        """See :class:`~kvmd.images.base.Image`."""
        if space == memory_pb2.ADDRESS_SPACE_PHYSICAL:
            return read(self._source, self._core.physical, address, length)
        if space in (memory_pb2.ADDRESS_SPACE_UNSPECIFIED, memory_pb2.ADDRESS_SPACE_KERNEL):
            return read(self._source, self._core.kernel, address, length)
        if space == memory_pb2.ADDRESS_SPACE_USER:
            raise self._refusal("memory of processes", "cannot read user space from dead kernel")
        raise error(Reason.BAD_ARGUMENT, f"{space} is no address space")

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """See :class:`~kvmd.images.base.Image`.

        :raises KvmError: NO_SYMBOLS without an execfile; EXEC_STRIPPED.
        """
        if self._names is None:
            raise error(Reason.NO_SYMBOLS, "a BSD dump has no symbols; name its kernel as execfile")
        return [to_wire(name, self._names.symbols.get(name)) for name in names]

    def _word(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8, memory_pb2.ADDRESS_SPACE_KERNEL), "little")

    def _address(self, name: str) -> int | None:
        """A symbol's value; None without one, or without a name list."""
        try:
            found = self._names.symbols.get(name) if self._names else None
        except KvmError:
            return None
        return found.value if found else None

    def _text(self, name: str) -> str:
        """The string that a symbol labels; empty if there is none to read."""
        address = self._address(name)
        return "" if address is None else self._string(address)

    def _panic(self) -> str:
        """What panicstr points to."""
        address = self._address("panicstr")
        try:
            return "" if address is None else self._string(self._word(address))
        except KvmError:
            return ""

    def _string(self, address: int) -> str:
        length = _MOST_TEXT
        try:
            data = self.read(address, length, memory_pb2.ADDRESS_SPACE_KERNEL)
        except KvmError as e:
            length = int(e.metadata.get("readable", "0"))
            data = self.read(address, length, memory_pb2.ADDRESS_SPACE_KERNEL) if length else b""
        text, end, _ = data.partition(b"\0")
        return text.decode("utf-8", "replace").strip() if end else ""

    def dump_header(self, memory_bytes: int) -> image_pb2.GetDumpHeaderResponse:
        """See :class:`~kvmd.images.base.Image`."""
        core = self._core
        if not isinstance(core, NetbsdCore):
            raise error(Reason.UNSUPPORTED, "only a NetBSD dump has such a header")
        headers = core.headers
        device = headers.segment_size + len(headers.cpu)
        return image_pb2.GetDumpHeaderResponse(header=headers.file(memory_bytes), device_bytes=device)

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.base.Image`."""
        if not 0 <= start < 1 << 64:
            raise error(Reason.BAD_ARGUMENT, f"{start:#x} is no address")
        return self._core.pages(start)

    def load_average(self) -> list[float]:
        """See :class:`~kvmd.images.base.Image`: averunnable by its scale, or by fscale, which NetBSD must have."""
        if self.foreign():
            raise self._refusal("the load averages", foreign="cannot read loadavg from non-native core")
        places = {name: self._address(name) for name in ("averunnable", "fscale")}
        for name, place in places.items():
            if place is None and (self._netbsd or name == "averunnable"):
                raise error(Reason.NO_SUCH_SYMBOL, f"the dump's kernel has no symbol {name}", symbol=f"_{name}")
        *load, scale = _LOADAVG.unpack(self.read(places["averunnable"] or 0, 24, memory_pb2.ADDRESS_SPACE_KERNEL))
        if places["fscale"] is not None:
            scale = int.from_bytes(self.read(places["fscale"], 4, memory_pb2.ADDRESS_SPACE_KERNEL), "little")
        if scale <= 0:
            raise error(Reason.CORRUPT_DATA, "the load averages' scale makes no sense")
        return [value / scale for value in load]

    def _refusal(self, what: str, text: str = "", foreign: str = "") -> KvmError:
        """What is said of data that can't be read.

        :param text: FreeBSD's libkvm's text, which it has of any dump; ``foreign``, of one that is not native.
        """
        system = "NetBSD" if self._netbsd else "FreeBSD"
        ours = f"{what} of a {system} dump can't be read: it does not tell how its kernel's structures are laid out"
        said = "" if self._netbsd else text or (foreign if self.foreign() else "")
        return error(Reason.UNSUPPORTED, said or ours)

    def processes(self, request: process_pb2.GetProcsRequest) -> NoReturn:
        """Refuse."""
        raise self._refusal("the processes", foreign="cannot read procs from non-native core")

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> NoReturn:
        """Refuse, as FreeBSD does."""
        raise self._refusal("arguments and environments", "cannot read user space from dead kernel")

    def log(self) -> NoReturn:
        """Refuse."""
        raise self._refusal("the kernel's log")

    def write(self, address: int, data: bytes) -> NoReturn:
        """A dump is never written: always WRITE_DEAD."""
        raise error(Reason.WRITE_DEAD, "a crash dump can't be written", address=address, written=0)

    def cpu_times(self) -> NoReturn:
        """Refuse."""
        raise self._refusal("CPU times", foreign="cannot read cp_time from non-native core")

    def cpus(self) -> NoReturn:
        """Refuse."""
        raise self._refusal("the CPUs")

    def swap_areas(self) -> NoReturn:
        """Refuse."""
        raise self._refusal("the swap areas", foreign="cannot read swapinfo from non-native core")

    def files(self, pid: int) -> NoReturn:
        """Refuse."""
        raise self._refusal("open files")

    def stacks(self, request: stack_pb2.GetStackRequest) -> NoReturn:
        """Refuse."""
        raise self._refusal("stacks")
