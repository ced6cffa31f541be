"""What the kernel counts: load, CPU time, CPUs, swap areas, open files."""

from __future__ import annotations

from libkvm.bounds import id_number
from libkvm.calls import GET_CPU_TIMES, GET_CPUS, GET_FILES, GET_LOAD_AVERAGE, GET_SWAP_INFO
from libkvm.convert import record
from libkvm.handle import Handle
from libkvm.records import Cpu, CpuTimes, OpenFile, Process, SwapArea


class System(Handle):
    """What can be read of an image's system-wide data."""

    def load_average(self, *, timeout: float | None = None) -> tuple[float, ...]:
        """Read the load averages over 1, 5 and 15 minutes; see kvm_getloadavg(3)."""
        request = GET_LOAD_AVERAGE.request(descriptor=self._id)
        return tuple(self._session.unary(GET_LOAD_AVERAGE, request, timeout).load_average)

    def cpu_times(self, *, timeout: float | None = None) -> list[CpuTimes]:
        """Read how CPUs spent their time since boot; see kvm_getcptime(3).

        :return: the sum, whose ``cpu`` is -1, then each online CPU.
        """
        request = GET_CPU_TIMES.request(descriptor=self._id)
        return [record(CpuTimes, times) for times in self._session.unary(GET_CPU_TIMES, request, timeout).times]

    def cpus(self, *, timeout: float | None = None) -> list[Cpu]:
        """List the possible CPUs in ascending order, and where their per-CPU data lie; see kvm_getpcpu(3)."""
        request = GET_CPUS.request(descriptor=self._id)
        return [record(Cpu, cpu) for cpu in self._session.unary(GET_CPUS, request, timeout).cpus]

    def max_cpus(self, *, timeout: float | None = None) -> int:
        """Answer one more than the highest CPU number that there can be; see kvm_getmaxcpu(3)."""
        request = GET_CPUS.request(descriptor=self._id)
        return self._session.unary(GET_CPUS, request, timeout).max_cpus

    def swap_areas(self, *, timeout: float | None = None) -> list[SwapArea]:
        """List the swap areas, as /proc/swaps does; see kvm_getswapinfo(3)."""
        request = GET_SWAP_INFO.request(descriptor=self._id)
        return [record(SwapArea, area) for area in self._session.unary(GET_SWAP_INFO, request, timeout).areas]

    def files(self, pid: Process | int | None = None, *, timeout: float | None = None) -> list[OpenFile]:
        """List open files by ascending pid and fd; see kvm_getfiles(3).

        :param pid: a process, or its id; None: all.
        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :raises ProcessError: there is no such process.
        :raises AccessError: the policy forbids it.
        """
        number = pid.pid if isinstance(pid, Process) else pid or 0
        request = GET_FILES.request(descriptor=self._id, pid=id_number(number))
        session = self._session
        answers = session.stream(GET_FILES, request, session.long_timeout if timeout is None else timeout)
        return [record(OpenFile, file) for answer in answers for file in answer.files]
