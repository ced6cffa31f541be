"""The CPUs: which there can be, which are online, where their own variables lie and what they run.

Source: Linux include/linux/cpumask.h (masks of nr_cpu_ids bits in unsigned longs), include/asm-generic/percpu.h
(``__per_cpu_offset``), kernel/sched/sched.h (``runqueues``), arch/x86 (``current_task`` up to 6.1 and from 6.15,
``pcpu_hot.current_task`` between).
"""

from __future__ import annotations

from functools import cached_property

from kvmd.errors import Reason, error
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.v1 import system_pb2

MAX_CPUS = 1 << 16
_ALL = (1 << 64) - 1
# Where current_task is no variable of its own: x86-64 from 6.2 to 6.14, and other architectures.
_CURRENT = (("pcpu_hot", "struct pcpu_hot", "current_task"), ("runqueues", "struct rq", "curr"))


class Cpus:
    """The CPUs of one kernel; every property is read anew, since CPUs of a running kernel come and go.

    :raises KvmError: NO_SYMBOLS if the image has no symbol table.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        kernel.address("runqueues")  # every kernel has it, so the names below that are missing are so for a reason

    @property
    def count(self) -> int:
        """One more than the highest CPU number there can be: nr_cpu_ids, which kernels for one CPU don't have.

        :raises KvmError: CORRUPT_DATA, or the fault of the page that holds it.
        """
        found = self._kernel.builtin("nr_cpu_ids")
        if found is None:  # CONFIG_NR_CPUS=1 or CONFIG_FORCE_NR_CPUS
            mask = self._kernel.builtin("__cpu_possible_mask")
            return max(mask.size * 8, 1) if mask else 1
        number = self._kernel.memory.number(found.value, 4)
        if not 0 < number <= MAX_CPUS:
            raise error(Reason.CORRUPT_DATA, f"{number} is no number of CPUs", address=found.value)
        return number

    @property
    def possible(self) -> list[int]:
        """The CPUs that can be, ascending."""
        return self._mask("__cpu_possible_mask")

    @property
    def online(self) -> list[int]:
        """The CPUs that run, ascending."""
        return self._mask("__cpu_online_mask")

    def _mask(self, name: str) -> list[int]:
        found, count = self._kernel.builtin(name), self.count
        if found is None:
            return [0]
        bits = self._kernel.memory.words(found.value, (count + 63) // 64)
        return [cpu for cpu in range(count) if bits[cpu // 64] >> cpu % 64 & 1]

    @property
    def offsets(self) -> list[int]:
        """What is added to the address of a per-CPU variable, by CPU; modulo 2**64."""
        found, count = self._kernel.builtin("__per_cpu_offset"), self.count
        if found is None:  # a kernel for one CPU: its variables lie where their symbols say
            return [0] * count
        return list(self._kernel.memory.words(found.value, count))

    def describe(self) -> system_pb2.GetCpusResponse:
        """List the possible CPUs; those that are offline run no task.

        :raises KvmError: NO_TYPES, CORRUPT_DATA, or the fault of a page that holds a mask or a CPU's variables.
        """
        online, offsets, place = set(self.online), self.offsets, self._current()
        answer = system_pb2.GetCpusResponse(max_cpus=self.count)
        for number in self.possible:
            cpu = answer.cpus.add(number=number, online=number in online, offset=offsets[number])
            if cpu.online:
                cpu.current_task = self._kernel.memory.number(place + offsets[number] & _ALL)
        return answer

    def following(self, cpu: system_pb2.Cpu) -> int:
        """The task that the scheduler has last chosen for a CPU, which may still be switching to it: ``rq->curr``.

        :raises KvmError: NO_TYPES, CORRUPT_DATA, or the fault of the page that holds a CPU's variables.
        """
        place = self._kernel.address("runqueues") + self._chosen.offsets["task"]
        return self._kernel.memory.number(place + cpu.offset & _ALL)

    @cached_property
    def _chosen(self) -> Fields:
        self._kernel.need_types()
        return Fields(self._kernel.prog, self._kernel.memory.kernel, "struct rq", {"task": ("curr",)})

    def _current(self) -> int:
        """The address of the per-CPU pointer to the running task."""
        plain = self._kernel.builtin("current_task")
        if plain is not None:
            return plain.value
        self._kernel.need_types()
        for name, tag, member in _CURRENT:
            found = self._kernel.builtin(name)
            if found is not None:
                fields = Fields(self._kernel.prog, self._kernel.memory.kernel, tag, {"task": (member,)})
                return found.value + fields.offsets["task"]
        raise AssertionError("runqueues was there before")
