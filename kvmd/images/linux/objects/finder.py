"""Finds objects, and proves them."""

from __future__ import annotations

from copy import copy
from functools import cached_property
from typing import Any

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kimage import KernelImage
from kvmd.images.linux.objects import percpu
from kvmd.images.linux.objects.kinds import Code, Derived, Object
from kvmd.images.linux.objects.probe import Probe
from kvmd.images.linux.objects.table import OBJECTS
from kvmd.images.linux.refs import DECODERS
from kvmd.images.linux.symbols import N_DATA, N_EXT, Found
from kvmd.v1 import symbol_pb2

_LONGEST = 1 << 14  # bytes of a function
_CANDIDATES = 1 << 12
_SUFFIXES = ("", ".part.0", ".isra.0", ".constprop.0")  # of what the compiler made of a function
_RUNQUEUES = ("idle_cpu", "available_idle_cpu", "task_curr", "idle_task")
_OFFSETS = ("idle_task", "task_curr", "nr_iowait_cpu")


class Objects:
    """The objects of one kernel; what was looked for is remembered.

    :param kernel: the :class:`~kvmd.images.linux.kernel.Kernel`.
    """

    def __init__(self, kernel: Any, image: KernelImage) -> None:
        self._kernel, self._image = kernel, image
        self._probe = Probe(kernel, image, self._cpus)
        self._decode = DECODERS.get(kernel.dump.architecture)
        self._known: dict[str, Found | KvmError | None] = {}
        self._busy: set[str] = set()
        self._references: dict[str, set[int] | None] = {}
        self._queues: dict[int, dict[int, int]] = {}

    def __call__(self, name: str) -> Found | None:
        """Find an object or a per-CPU variable; None if it isn't there or can't be told.

        :raises KvmError: AMBIGUOUS.
        """
        if name not in self._known:
            if name in self._busy:  # its own check asked
                return None
            self._look(name)
        known = self._known[name]
        if isinstance(known, KvmError):
            raise copy(known)
        return known

    def _look(self, name: str) -> None:
        if not self._busy:
            self._probe.start()
        self._busy.add(name)
        try:
            self._known[name] = self._find(name)
        except KvmError as e:
            self._known[name] = e
        finally:
            self._busy.discard(name)

    def _find(self, name: str) -> Found | None:
        if name == "__per_cpu_offset":
            return self._only(name, self._tables(), lambda at: bool(self._bases(at)), 8, by_code=True)
        known = OBJECTS.get(name)
        if known is not None:
            places, by_code = self._places(known), isinstance(known.origin, Code)
            if not places and known.untold is not None:
                places, by_code = self._candidates(known.untold), True
            return self._only(name, places, lambda at: known.check(self._probe, at), known.size, by_code)
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
        if len(places) > _CANDIDATES:
            raise self._probe.too_many()
        for at in sorted(places):
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
            return self._candidates(origin)
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

    def _candidates(self, origin: Code) -> set[int]:
        """What all of its functions refer to, and none of the others."""
        referred = [found for name in origin.functions if (found := self._of(name)) is not None]
        if not referred:
            return set()
        others = (found for name in origin.without if (found := self._of(name)) is not None)
        common = set.intersection(*referred)
        whole = {at for at in common if all(at + offset in common for offset in origin.also)}
        candidates = whole.difference(*others)
        return {at for at in candidates if self._image.holds(at) and not self._probe.code(at)}

    def _of(self, functions: str) -> set[int] | None:
        """What functions, joined by ``|``, refer to; None if the kernel has none of them."""
        found: list[set[int]] = []
        for name in functions.split("|"):
            if name not in self._references:
                self._references[name] = self._read(name)
            if (references := self._references[name]) is not None:
                found.append(references)
        return set().union(*found) if found else None

    def _read(self, function: str) -> set[int] | None:
        written = (self._kernel.written(function + suffix) for suffix in _SUFFIXES)
        found = next((one for one in written if one is not None and one.size), None)
        if found is None or self._decode is None:
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

    def _tables(self) -> set[int]:
        return self._candidates(Code(_OFFSETS))

    def _cpus(self) -> set[int]:
        """The sets of CPUs, as bits, that have runqueues by one of what could be __per_cpu_offset."""
        return {cpus for table in self._tables() for cpus in self._queues_by(table).values()}

    def _bases(self, table: int) -> list[int]:
        possible = self._probe.word(self._probe.address("__cpu_possible_mask"))
        return [base for base, cpus in self._queues_by(table).items() if cpus == possible]

    def _queues_by(self, table: int) -> dict[int, int]:
        variable = self._variables.get("runqueues")
        if variable is None:
            return {}
        if table not in self._queues:
            self._queues[table] = percpu.queues(self._probe, table, variable[0], self._any_of(_RUNQUEUES))
        return self._queues[table]

    def _any_of(self, functions: tuple[str, ...]) -> set[int]:
        return {at for name in functions for at in self._of(name) or ()}

    @cached_property
    def _base(self) -> int:
        return percpu.base(self._bases(self._probe.address("__per_cpu_offset")))


def _none(e: KvmError) -> None:
    """A failure means that the thing isn't there; but not that there are several of it."""
    if e.reason is Reason.AMBIGUOUS:
        raise e
