"""What stacks need of an architecture: where a task's registers are while it sleeps, and how to walk from there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from drgn import Architecture, sizeof

from kvmd.errors import Reason, error
from kvmd.images.linux import unwind_frames, unwind_orc
from kvmd.images.linux.code import Code
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.unwind import At, Walk


class Unwinder(ABC):
    """Unwinds the stacks of one kernel.

    :ivar registers: how many words a CPU's NT_PRSTATUS note has of registers.
    :ivar stack_size: THREAD_SIZE, or less, which only weakens a check.
    """

    registers: int
    stack_size = 1 << 14

    @abstractmethod
    def asleep(self, task: dict[str, Any]) -> At:
        """Where a task that doesn't run was switched from; ``task`` has ``sp``, ``fp`` and ``pc`` of its thread."""

    @abstractmethod
    def entered(self, registers: tuple[int, ...]) -> At:
        """Where a CPU was; raises :class:`~kvmd.images.linux.unwind.Stop` if that was user space."""

    @abstractmethod
    def walk(self, code: Code, stack: range) -> Walk:
        """A walk over a task's stack."""


class OrcUnwinder(Unwinder):
    """x86-64; a task's registers are on its stack (arch/x86/include/asm/switch_to.h, struct inactive_task_frame)."""

    registers = 27  # struct user_regs_struct

    def __init__(self, kernel: Kernel) -> None:
        self._read = kernel.memory.kernel
        wanted = {"bp": ("bp",), "pc": ("ret_addr",)}
        self._frame = Fields(kernel.prog, self._read, "struct inactive_task_frame", wanted)
        self._size = sizeof(kernel.prog.type("struct inactive_task_frame"))

    def asleep(self, task: dict[str, Any]) -> At:
        """See :class:`Unwinder`."""
        frame: dict[str, Any] = self._frame(task["sp"])
        return At(frame["pc"], task["sp"] + self._size, frame["bp"])

    def entered(self, registers: tuple[int, ...]) -> At:
        """See :class:`Unwinder`."""
        return unwind_orc.entered(registers)

    def walk(self, code: Code, stack: range) -> Walk:
        """See :class:`Unwinder`."""
        code.orc  # noqa: B018 - a cached property: a kernel without tables is no fault of this stack
        return unwind_orc.OrcWalk(self._read, code.row, lambda address: code.name(address)[1], stack)


class FrameUnwinder(Unwinder):
    """arm64; a task's registers are in its thread_struct (arch/arm64/include/asm/processor.h, struct cpu_context)."""

    registers = unwind_frames.REGISTERS

    def __init__(self, kernel: Kernel) -> None:
        self._read = kernel.memory.kernel
        self.stack_size = max(self.stack_size, kernel.dump.layout.page_size)
        kind = kernel.prog.type("struct pt_regs")
        record = kind.member("stackframe")
        self._shape = unwind_frames.Shape(
            record=record.offset,
            registers=sizeof(kind),
            meta=sizeof(record.type) > 16,
            top=kernel.memory.walkable().paging.kernel,
        )

    def asleep(self, task: dict[str, Any]) -> At:
        """See :class:`Unwinder`."""
        return At(task["pc"], task["sp"], task["fp"])

    def entered(self, registers: tuple[int, ...]) -> At:
        """See :class:`Unwinder`."""
        return unwind_frames.entered(registers)

    def walk(self, code: Code, stack: range) -> Walk:
        """See :class:`Unwinder`."""
        return unwind_frames.FrameWalk(self._read, lambda address: code.name(address)[1], self._shape, stack)


_UNWINDERS: dict[Architecture, type[OrcUnwinder | FrameUnwinder]] = {
    Architecture.X86_64: OrcUnwinder,
    Architecture.AARCH64: FrameUnwinder,
}


def unwinder_of(kernel: Kernel) -> Unwinder:
    """What unwinds a kernel's stacks.

    :raises KvmError: UNSUPPORTED for other architectures; NO_TYPES.
    """
    make = _UNWINDERS.get(kernel.dump.architecture)
    if make is None:
        name = kernel.dump.architecture.name
        raise error(Reason.UNSUPPORTED, f"stacks of this {name} kernel can't be unwound", architecture=name)
    return make(kernel)
