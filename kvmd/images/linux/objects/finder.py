"""Finds objects, and proves them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kimage import KernelImage
from kvmd.images.linux.objects import percpu
from kvmd.images.linux.objects.probe import Probe
from kvmd.images.linux.objects.table import OBJECTS, Code, Derived, Object
from kvmd.images.linux.refs import DECODERS
from kvmd.images.linux.symbols import N_DATA, N_EXT, Found
from kvmd.v1 import symbol_pb2

_LONGEST = 1 << 14  # bytes of a function
_CANDIDATES = 1 << 12
_RUNQUEUES = ("idle_cpu", "available_idle_cpu", "task_curr", "idle_task")
_OFFSETS = ("idle_task", "task_curr", "nr_iowait_cpu")


class Objects:
    """The objects of one kernel; what was looked for is remembered.

    :param kernel: the :class:`~kvmd.images.linux.kernel.Kernel`.
    """

    def __init__(self, kernel: Any, image: KernelImage) -> None:
        self._kernel, self._image = kernel, image
        self._probe = Probe(kernel, image)
        self._decode = DECODERS.get(kernel.dump.architecture)
        self._known: dict[str, Found | None] = {}
        self._busy: set[str] = set()
        self._references: dict[str, set[int] | None] = {}

    def __call__(self, name: str) -> Found | None:
        """Find an object or a per-CPU variable; None if it isn't there or can't be told.

        :raises KvmError: AMBIGUOUS.
        """
        if name in self._known:
            return self._known[name]
        if name in self._busy:  # its own check asked
            return None
        self._busy.add(name)
        try:
            self._known[name] = found = self._find(name)
        finally:
            self._busy.discard(name)
        return found

    def _find(self, name: str) -> Found | None:
        if name == "__per_cpu_offset":
            return self._only(name, self._candidates(_OFFSETS), lambda at: bool(self._bases(at)), 8, by_code=True)
        known = OBJECTS.get(name)
        if known is not None:
            by_code = isinstance(known.origin, Code)
            return self._only(name, self._places(known), lambda at: known.check(self._probe, at), known.size, by_code)
        try:
            place = self._variables.get(name)
            if place is None:
                return None
            value = self._base + place[0] & (1 << 64) - 1
        except KvmError as e:
            _none(e)
            return None
        return Found(name, value, place[1], N_DATA | place[2], symbol_pb2.SYMBOL_SOURCE_BTF)

    def _only(self, name: str, places: set[int], check: Any, size: int, by_code: bool) -> Found | None:
        """The one place that passes."""
        passed: list[int] = []
        for at in sorted(places)[:_CANDIDATES]:
            if passed and at < passed[-1] + size:
                continue
            try:
                if check(at):
                    passed.append(at)
            except KvmError as e:
                _none(e)
        if len(passed) > 1:
            where = ", ".join(f"{at:#x}" for at in passed[:8])
            message = f"{len(passed)} things of the image could be {name} ({where}); name a vmlinux as execfile"
            raise error(Reason.AMBIGUOUS, message, symbol=name)
        sources = symbol_pb2.SYMBOL_SOURCE_CONTENT, symbol_pb2.SYMBOL_SOURCE_CODE
        return Found(name, passed[0], 0, N_DATA | N_EXT, sources[by_code]) if passed else None

    def _places(self, known: Object) -> set[int]:
        """Where to look for an object."""
        origin = known.origin
        if isinstance(origin, Code):
            return self._candidates(origin.functions, origin.without)
        try:
            if isinstance(origin, Derived):
                return {origin.address(self._probe)}
            found: set[int] = set()
            for wanted, offset in origin.bytes_of(self._probe):
                for at in self._image.find(wanted):
                    found.add(at - offset)
                    if len(found) > _CANDIDATES:
                        return found
            return found
        except StopIteration:
            return set()
        except KvmError as e:
            _none(e)
            return set()

    def _candidates(self, functions: tuple[str, ...], without: tuple[str, ...] = ()) -> set[int]:
        """What all of these functions refer to, and none of the others."""
        referred = [found for name in functions if (found := self._of(name)) is not None]
        if not referred:
            return set()
        others = (found for name in without if (found := self._of(name)) is not None)
        candidates = set.intersection(*referred).difference(*others)
        return {at for at in candidates if self._image.holds(at)}

    def _of(self, function: str) -> set[int] | None:
        """What a function refers to; None if the kernel doesn't have it."""
        if function not in self._references:
            self._references[function] = self._read(function)
        return self._references[function]

    def _read(self, function: str) -> set[int] | None:
        found = self._kernel.written(function)
        if found is None or not found.size or self._decode is None:
            return None
        try:
            code = self._kernel.memory.kernel(found.value, min(found.size, _LONGEST))
        except KvmError:
            return None
        return self._decode(code, found.value)

    @cached_property
    def _variables(self) -> dict[str, percpu.Variable]:
        self._kernel.need_types()
        btf = self._kernel.btf
        return percpu.variables(btf) if btf is not None else {}

    def _bases(self, table: int) -> list[int]:
        queues = self._variables.get("runqueues")
        if queues is None:
            return []
        return percpu.bases(self._probe, table, queues[0], self._any_of(_RUNQUEUES))

    def _any_of(self, functions: tuple[str, ...]) -> set[int]:
        return {at for name in functions for at in self._of(name) or ()}

    @cached_property
    def _base(self) -> int:
        return percpu.base(self._bases(self._probe.address("__per_cpu_offset")))


def _none(e: KvmError) -> None:
    """A failure means that the thing isn't there; but not that there are several of it."""
    if e.reason is Reason.AMBIGUOUS:
        raise e
