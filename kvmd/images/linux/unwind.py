"""Walks a stack from one set of registers: what all architectures have in common.

How the caller of a frame is found, an architecture's own module says.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kvmd.errors import KvmError
from kvmd.images.linux.memory import Read
from kvmd.images.linux.symbols import KERNEL
from kvmd.v1 import stack_pb2

MAX_FRAMES = 256
ALL = (1 << 64) - 1
Function = Callable[[int], int]
"""The address of the function that holds an instruction; 0 if it isn't known."""


class At(NamedTuple):
    """A place on the stack.

    :ivar pc: the instruction, or the one after a call.
    :ivar exact: whether the instruction itself was next, not one after a call.
    :ivar saved: all registers, where they were saved right here.
    :ivar found: whether it was searched for.
    :ivar sure: whether ``bp`` is known to be right.
    """

    pc: int
    sp: int
    bp: int
    exact: bool = False
    saved: tuple[int, ...] = ()
    found: bool = False
    sure: bool = True

    @property
    def code(self) -> int:
        """An address inside the instruction: a call may be a function's last."""
        return self.pc if self.exact or not self.pc else self.pc - 1


class Stop(Exception):  # noqa: N818 - no error, but how every walk ends
    """There are no more frames.

    :ivar end: why.
    """

    def __init__(self, end: stack_pb2.StackEnd) -> None:
        super().__init__(end)
        self.end = end


class Walk(ABC):
    """One walk.

    :param read: reads kernel memory exactly.
    :param stack: the task's own stack; exceptions and interrupts have others.
    :ivar end: how the walk ended, once it has.
    :ivar error: what could not be read, if the end is FAULT.
    """

    def __init__(self, read: Read, stack: range) -> None:
        self._read, self._stack = read, stack
        self.end = stack_pb2.STACK_END_UNSPECIFIED
        self.error: KvmError | None = None

    def frames(self, start: At) -> Iterator[At]:
        """Give the frames, the innermost first; at most 256."""
        at, seen = start, set[int]()
        try:
            for _ in range(MAX_FRAMES):
                yield at
                seen.add(at.sp)
                following = self._caller(at)
                backwards = at.sp in self._stack and following.sp in self._stack and following.sp <= at.sp
                if following.sp in seen or backwards:
                    raise Stop(stack_pb2.STACK_END_CORRUPT)
                at = following
            self.end = stack_pb2.STACK_END_LIMIT
        except Stop as stop:
            self.end = stop.end
        except KvmError as e:
            self.end, self.error = stack_pb2.STACK_END_FAULT, e

    @abstractmethod
    def _caller(self, at: At) -> At:
        """The frame that called another.

        :raises Stop: there is none, or it can't be told.
        :raises KvmError: what can't be read.
        """

    def _word(self, address: int) -> int:
        return int.from_bytes(self._bytes(address, 8), "little")

    def _bytes(self, address: int, length: int) -> bytes:
        if address & 7 or not KERNEL <= address <= ALL - length:
            raise Stop(stack_pb2.STACK_END_CORRUPT)
        return self._read(address, length)
