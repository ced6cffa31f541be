"""The running kernel, as the worker sees it: a dump's reader over memory that changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property

from kvmd.errors import Reason, error
from kvmd.images.base import File, Files
from kvmd.images.linux import btf, live_processes, live_stack, live_steady, live_write
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kernel import Kernel, Sources
from kvmd.images.linux.live_files import whole
from kvmd.images.linux.live_kallsyms import LiveKallsyms
from kvmd.images.linux.live_memory import open_live
from kvmd.images.linux.live_modules import ModuleList
from kvmd.images.linux.memory import Memory
from kvmd.v1 import image_pb2, memory_pb2, symbol_pb2, system_pb2


class LiveImage(LinuxImage):
    """The running kernel, by /proc/kcore or /dev/mem. Nothing that may change is kept from one call to the next.

    :raises KvmError: as :func:`~kvmd.images.linux.live_memory.open_live`; EXEC_NOT_ELF, EXEC_FOREIGN.
    """

    _table: LiveKallsyms | None = None

    def _open(self, files: Files) -> Kernel:
        dump = open_live(files)
        types, kallsyms = files.extra.get("btf/vmlinux"), files.extra.get("kallsyms")
        if kallsyms is not None:
            self._table = LiveKallsyms(kallsyms, ModuleList(Memory(dump).kernel, self._modules_head).state)
        modules = [file for role, file in files.extra.items() if role.startswith("btf/") and file is not types]
        sources = Sources(
            self._table,
            _blob(types) if types else None,
            tuple(map(_blob, modules)) if modules else None,
        )
        return Kernel(dump, files.exec, sources)

    def _modules_head(self) -> int | None:
        found = self.kernel.builtin("modules")
        return found.value if found else None

    @cached_property
    def _processes(self) -> live_processes.LiveProcesses:
        """Knows offsets, and no process."""
        with self.kernel.reading("the process list"):
            return live_processes.LiveProcesses(self.kernel)

    @cached_property
    def _strings(self) -> live_processes.LiveStrings:
        with self.kernel.reading("the process list"):
            return live_processes.LiveStrings(self.kernel, self._processes, self._pages)

    @cached_property
    def _stacks(self) -> live_stack.LiveStacks:
        with self.kernel.reading("the stacks"):
            return live_stack.LiveStacks(self.kernel, self._processes.tasks)

    @cached_property
    def _writer(self) -> live_write.Writer | None:
        mem = self._names.extra.get("mem")
        if mem is None or not self._names.writable:
            return None
        return live_write.Writer(mem, self.kernel.memory, self.kernel.dump.layout)

    def info(self) -> image_pb2.Info:
        """See :class:`~kvmd.images.base.Image`; this kernel's clocks are asked, not read from its memory."""
        known = super().info()
        known.live = True
        known.uptime_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        known.time_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
        return known

    def read(self, address: int, length: int, space: memory_pb2.AddressSpace, pid: int = 0) -> bytes:
        """See :class:`~kvmd.images.base.Image`."""
        read = super().read
        if space != memory_pb2.ADDRESS_SPACE_USER:
            return read(address, length, space, pid)
        return live_processes.in_one_memory(self._processes, pid, lambda: read(address, length, space, pid))

    def symbols(self, names: Sequence[str]) -> list[symbol_pb2.Symbol]:
        """See :class:`~kvmd.images.base.Image`."""
        with ExitStack() as stack:
            if self._table is not None:
                stack.enter_context(self._table.batch())
            return super().symbols(names)

    def log(self) -> Iterator[image_pb2.LogRecord]:
        """See :class:`~kvmd.images.base.Image`."""
        yield from live_steady.steady("the kernel's log", lambda: list(super(LiveImage, self).log()))

    def load_average(self) -> list[float]:
        """See :class:`~kvmd.images.base.Image`."""
        return live_steady.steady("the load averages", super().load_average)

    def cpu_times(self) -> list[system_pb2.CpuTimes]:
        """See :class:`~kvmd.images.base.Image`."""
        return live_steady.steady("the CPU times", super().cpu_times)

    def cpus(self) -> system_pb2.GetCpusResponse:
        """See :class:`~kvmd.images.base.Image`."""
        return live_steady.steady("the CPUs", super().cpus)

    def swap_areas(self) -> list[system_pb2.SwapArea]:
        """See :class:`~kvmd.images.base.Image`."""
        return live_steady.steady("the swap areas", super().swap_areas)

    def files(self, pid: int) -> Iterator[system_pb2.OpenFile]:
        """See :class:`~kvmd.images.base.Image`; of each process, what two readings in turn agree about."""

        def of(one: int) -> list[system_pb2.OpenFile]:
            return live_steady.alike(lambda: list(super(LiveImage, self).files(one)), ("fd", "path", "inode"))

        return iter(of(pid)) if pid else live_steady.each_process(self._processes.pids(), of)

    def write(self, address: int, data: bytes) -> None:
        """See :class:`~kvmd.images.base.Image`, and :mod:`~kvmd.images.linux.live_write`."""
        if self._writer is None:
            raise error(Reason.WRITE_READ_ONLY, "the descriptor was opened read-only; open it with O_RDWR")
        self._writer.write(address, data)


def _blob(file: File) -> Callable[[], bytes]:
    """Gives a file's BTF, once it is wanted."""
    return lambda: whole(file, btf.MAX_SIZE)
