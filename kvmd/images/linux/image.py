"""An opened Linux dump, as the worker sees it (:class:`kvmd.images.base.Image`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK, ByteOrder, Files
from kvmd.images.linux import (
    auxv,
    cpus,
    elfsymbols,
    files,
    info,
    log,
    pages,
    paths,
    processes,
    stack,
    strings,
    swapinfo,
    system,
    user,
    userpages,
)
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.layout import PAGE
from kvmd.images.linux.order import NAMES
from kvmd.images.linux.scan import recover
from kvmd.images.linux.swap import evidence, reader
from kvmd.images.linux.symbols import to_wire
from kvmd.v1 import error_pb2, image_pb2, memory_pb2, process_pb2, stack_pb2, symbol_pb2, system_pb2

_BUILD_ID = re.compile("[0-9a-f]{16,64}")
_REFUSED = (
    Reason.SWAP_FOREIGN,
    Reason.TRUNCATED_IMAGE,
    Reason.UNSUPPORTED_FORMAT,
    Reason.CORRUPT_IMAGE,
    Reason.SOURCE_IO,
)


class LinuxImage:
    """A crash dump of a Linux kernel. Opening reads the headers only; the rest is loaded when it is first needed.

    :raises KvmError: the errors of :func:`~kvmd.images.linux.scan.recover.open_dump`; EXEC_NOT_ELF, EXEC_FOREIGN;
        SWAP_FOREIGN, TRUNCATED_IMAGE, UNSUPPORTED_FORMAT or CORRUPT_IMAGE for a swap image;
        BAD_ARGUMENT without a core; UNSUPPORTED if it is to be written.
    """

    def __init__(self, files: Files) -> None:
        self._names = files
        self._kernel = self._open(files)
        if files.swap and not self._kernel.dump.live:
            self._check_swap()

    def _open(self, files: Files) -> Kernel:
        if files.core is None:
            raise error(Reason.BAD_ARGUMENT, "a dump needs a core file")
        if files.writable:
            raise error(Reason.UNSUPPORTED, "a crash dump can't be written", path=files.core.name)
        return Kernel(recover.open_dump(files.core, files.progress, files.unpacker), files.exec)

    def _check_swap(self) -> None:
        """Refuse a swap image that is none of this dump's; what keeps that from being known is told when it is read."""
        try:
            swapped = self._swapped
            swapped.matched  # noqa: B018 - a cached property
            if swapped.doubtful:
                vectors = auxv.AuxVectors(self._kernel, self._processes.tasks, self._pages, swapped.chain())
                unproven = evidence.weigh(vectors.witnesses(), swapped.doubtful)
                for number in unproven if not self._names.any_swap else ():
                    swapped.distrust(number)
        except KvmError as e:
            if e.reason in _REFUSED:
                raise

    @property
    def kernel(self) -> Kernel:
        """The kernel below, for more specialised readers of this package."""
        return self._kernel

    @property
    def byte_order(self) -> ByteOrder:
        """See :class:`~kvmd.images.base.Image`."""
        return NAMES[self._kernel.memory.order]

    @cached_property
    def _processes(self) -> processes.Processes:
        with self._kernel.reading("the process list"):
            return processes.Processes(self._kernel)

    @cached_property
    def _strings(self) -> strings.StringReader:
        with self._kernel.reading("the process list"):
            return strings.StringReader(self._kernel, self._processes, self._pages)

    @cached_property
    def _user(self) -> user.UserMemory:
        with self._kernel.reading("the process list"):
            return user.UserMemory(self._kernel, self._processes, self._pages)

    @cached_property
    def _files(self) -> files.OpenFiles:
        with self._kernel.reading("the open files"):
            return files.OpenFiles(self._kernel, self._processes.tasks)

    @cached_property
    def _stacks(self) -> stack.Stacks:
        with self._kernel.reading("the stacks"):
            return stack.Stacks(self._kernel, self._processes.tasks)

    @cached_property
    def _swap(self) -> swapinfo.SwapAreas:
        with self._kernel.reading("the swap areas"):
            return swapinfo.SwapAreas(self._kernel)

    @cached_property
    def _swapped(self) -> reader.SwapReader:
        with self._kernel.reading("the swap areas"):
            return reader.SwapReader(self._kernel, self._swap, self._names.swap, self._paths)

    @cached_property
    def _pages(self) -> userpages.UserPages:
        return userpages.UserPages(self._kernel, lambda: self._swapped)

    def _paths(self) -> paths.Paths:
        return paths.Paths(self._kernel, paths.init_root(self._kernel, self._processes.tasks))

    @cached_property
    def _cpu_times(self) -> system.CpuTimes:
        with self._kernel.reading("the CPU times"):
            return system.CpuTimes(self._kernel)

    @property
    def build_id(self) -> str:
        """See :class:`~kvmd.images.base.Indexed`; of an image with an execfile, or the running kernel, nothing."""
        if self._kernel.dump.live or self._kernel.execfile is not None:
            return ""
        known = self._kernel.info.build_id
        return known if _BUILD_ID.fullmatch(known) else ""

    def use_index(self, data: memoryview) -> None:
        """See :class:`~kvmd.images.base.Indexed`."""
        self._kernel.use_index(data)

    def index_inputs(self) -> bytes:
        """See :class:`~kvmd.images.base.Indexed`."""
        return self._kernel.index_inputs()

    def info(self) -> image_pb2.Info:
        """See :class:`~kvmd.images.base.Image`."""
        return info.describe(self._kernel)

    def kernel_name(self) -> str:
        """The execfile's name, else the source of the symbols: ``kallsyms`` or ``vmcoreinfo``."""
        return self._names.exec.name if self._names.exec else self._kernel.symbols_source

    def foreign(self) -> bool:
        """See :class:`~kvmd.images.base.Image`; only FreeBSD's dumps are."""
        return False

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace, pid: int = 0) -> bytes:
        """See :class:`~kvmd.images.base.Image`."""
        if PAGE < length <= CHUNK:
            data = bytearray(length)
            if self.read_into(address, memoryview(data), space):
                return bytes(data)
        if space == memory_pb2.ADDRESS_SPACE_PHYSICAL:
            return self._kernel.memory.physical(address, length)
        if space in (memory_pb2.ADDRESS_SPACE_UNSPECIFIED, memory_pb2.ADDRESS_SPACE_KERNEL):
            return self._kernel.memory.kernel(address, length)
        if space == memory_pb2.ADDRESS_SPACE_USER:
            return self._user.read(pid, address, length)
        raise error(Reason.BAD_ARGUMENT, f"{space} is no address space")

    def read_into(self, address: int, into: memoryview, space: memory_pb2.AddressSpace) -> bool:
        """See :class:`~kvmd.images.base.Image`."""
        if space == memory_pb2.ADDRESS_SPACE_PHYSICAL:
            return self._kernel.memory.physical_into(address, into)
        if space in (memory_pb2.ADDRESS_SPACE_UNSPECIFIED, memory_pb2.ADDRESS_SPACE_KERNEL):
            return self._kernel.memory.kernel_into(address, into)
        return False

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """See :class:`~kvmd.images.base.Image`.

        :raises KvmError: EXEC_STRIPPED where an execfile without symbols was named.
        """
        execfile = self._kernel.execfile
        if execfile and execfile.stripped:
            raise elfsymbols.stripped(execfile.file)
        return [to_wire(name, self._kernel.symbol(name)) for name in names]

    def processes(self, request: process_pb2.GetProcsRequest) -> Iterator[process_pb2.Process]:
        """See :class:`~kvmd.images.base.Image`."""
        for process in self._processes.select(request):
            if request.arguments:
                process.arguments.CopyFrom(self._arguments(process))
            yield process

    def _arguments(self, process: process_pb2.Process) -> process_pb2.Strings:
        try:
            return self._strings.arguments(process)
        except KvmError as e:
            failure = error_pb2.Error(reason=e.reason.value, message=e.message, metadata=e.metadata)
            return process_pb2.Strings(error=failure)

    def strings(self, pid: int, kind: process_pb2.StringsKind, limit: int) -> process_pb2.Strings:
        """See :class:`~kvmd.images.base.Image`."""
        return self._strings.read(pid, kind, limit)

    def log(self) -> Iterator[image_pb2.LogRecord]:
        """See :class:`~kvmd.images.base.Image`."""
        yield from log.records(self._kernel)

    def write(self, address: int, data: bytes) -> None:
        """A dump is never written: always WRITE_DEAD."""
        raise error(Reason.WRITE_DEAD, "a crash dump can't be written", address=address, written=0)

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.base.Image`."""
        yield from pages.pages(self._kernel, start)

    def dump_header(self, memory_bytes: int) -> image_pb2.GetDumpHeaderResponse:
        """Refuse: Linux's dumps are ready to use."""
        raise error(Reason.UNSUPPORTED, "only a NetBSD dump has such a header")

    def load_average(self) -> list[float]:
        """See :class:`~kvmd.images.base.Image`."""
        return system.load_average(self._kernel)

    def cpu_times(self) -> list[system_pb2.CpuTimes]:
        """See :class:`~kvmd.images.base.Image`."""
        return self._cpu_times.read()

    def cpus(self) -> system_pb2.GetCpusResponse:
        """See :class:`~kvmd.images.base.Image`."""
        return cpus.Cpus(self._kernel).describe()

    def swap_areas(self) -> list[system_pb2.SwapArea]:
        """See :class:`~kvmd.images.base.Image`."""
        found = self._swap.read(self._paths())
        facts: dict[int, reader.Facts] = {}
        with suppress(KvmError):  # the list does not need them
            facts = self._swapped.facts()
        for area in found:
            if (known := facts.get(area.number)) is not None:
                area.uuid, area.label, area.satisfied_by = known
        return found

    def files(self, pid: int) -> Iterator[system_pb2.OpenFile]:
        """See :class:`~kvmd.images.base.Image`."""
        yield from self._files.walk(pid)

    def stacks(self, request: stack_pb2.GetStackRequest) -> Iterator[stack_pb2.Stack]:
        """See :class:`~kvmd.images.base.Image`."""
        yield from self._stacks.select(request)
