"""What finders and checks of objects look with: typed reads of one kernel, bounded walks of its lists."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

from drgn import sizeof

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kimage import KernelImage
from kvmd.images.linux.symbols import KERNEL

_MOST = 4096  # entries of a list that are looked at
_READS = 1 << 18  # in the search for one object; small kernels need a hundredth
_ALL = (1 << 64) - 1


class Probe:
    """Looks at one kernel. Everything raises KvmError where it finds no sense, which fails a check.

    :ivar kernel: a :class:`~kvmd.images.linux.kernel.Kernel`.
    :ivar cpus: gives the sets of CPUs, as bits, that can be all there are: those of the first 64 that have runqueues.
    """

    def __init__(self, kernel: Any, image: KernelImage, cpus: Callable[[], set[int]]) -> None:
        self.kernel, self.image, self.cpus = kernel, image, cpus
        self._fields: dict[tuple[str, str], Fields] = {}
        self._left = 0

    def start(self) -> None:
        """Allow as many reads as the search for one object may need."""
        self._left = _READS

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise self.too_many()

    def word(self, address: int, size: int = 8) -> int:
        """An unsigned integer."""
        self._count()
        return int.from_bytes(self.kernel.memory.kernel(address & _ALL, size), "little")

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Words of 8 bytes."""
        self._count()
        return struct.unpack(f"<{count}Q", self.kernel.memory.kernel(address & _ALL, 8 * count))

    def _of(self, tag: str, member: str) -> Fields:
        key = tag, member
        if key not in self._fields:
            wanted = {"it": tuple(member.split("|"))}
            self._fields[key] = Fields(self.kernel.prog, self.kernel.memory.kernel, tag, wanted)
        return self._fields[key]

    def member(self, tag: str, member: str, address: int) -> Any:
        """A member of a struct; its former names follow after ``|``."""
        self._count()
        return self._of(tag, member)(address)["it"]

    def offset(self, tag: str, member: str) -> int:
        """Where a member lies."""
        return self._of(tag, member).offsets["it"]

    def size(self, tag: str) -> int:
        """How long a struct or another type is."""
        try:
            return int(sizeof(self.kernel.prog.type(tag)))
        except LookupError as e:
            raise error(Reason.NO_TYPES, f"the kernel has no {tag}") from e

    def constant(self, name: str) -> int:
        """The value of an enumerator."""
        try:
            return int(self.kernel.prog.constant(name))
        except LookupError as e:
            raise error(Reason.NO_TYPES, f"the kernel has no {name}") from e

    def has(self, tag: str) -> bool:
        """Whether the kernel has a type."""
        try:
            self.kernel.prog.type(tag)
        except LookupError:
            return False
        return True

    def address(self, name: str) -> int:
        """The address of another symbol or object."""
        value: int = self.kernel.address(name)
        return value

    def text(self, address: int, limit: int = 64) -> bytes:
        """A printable string, which ends before the limit."""
        read, first = self.kernel.memory.kernel, min(limit, 4096 - address % 4096)
        data: bytes = read(address, first)
        if 0 not in data and first < limit:
            data += read(address + first, limit - first)
        found = data.split(b"\0")[0]
        if not found or len(found) == len(data) or not all(32 <= byte < 127 for byte in found):
            raise self.wrong(address)
        return found

    def ring(self, head: int, offset: int) -> Iterator[int]:
        """The structs on a list, the first 4096, each of which must point back to the one before.

        :param offset: where in a struct its list_head lies.
        """
        at = head
        for _ in range(_MOST):
            following = self.word(at)
            if following < KERNEL or following % 8 or self.word(following + 8) != at:
                raise self.wrong(following)
            if following == head:
                return
            yield following - offset
            at = following

    def code(self, address: int) -> bool:
        """Whether an address lies in the kernel's own code."""
        return self.address("_stext") <= address < self.address("_etext")

    @staticmethod
    def too_many() -> KvmError:
        """More could be what is looked for than can be looked at: no failed check, but the end of the search."""
        message = "too many things of the image could be what is looked for"
        return error(Reason.AMBIGUOUS, f"{message}; name a vmlinux as execfile")

    @staticmethod
    def wrong(address: int) -> Exception:
        """What is here is not what it should be."""
        return error(Reason.CORRUPT_DATA, f"{address:#x} is not what was looked for", address=address)
