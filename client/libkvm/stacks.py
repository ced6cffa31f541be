"""Stack traces of the kernel."""

from __future__ import annotations

from libkvm.bounds import id_number
from libkvm.calls import GET_STACK
from libkvm.convert import failure, record
from libkvm.errors import Reason, error
from libkvm.handle import Handle
from libkvm.records import Process, Stack


class Stacks(Handle):
    """What can be read of an image's kernel stacks."""

    def stack(
        self, task: Process | int | None = None, *, cpu: int | None = None, timeout: float | None = None
    ) -> Stack:
        """Unwind the kernel stack of a thread, or of what a CPU runs.

        :param task: a process or thread, or its id.
        :param cpu: a CPU's number, instead.
        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :return: the frames, and why there are no more of them.
        :raises ProcessError: there is no such thread; or it runs, and the image doesn't hold its registers.
        :raises AccessError: the policy forbids it.
        """
        if (task is None) is (cpu is None):
            raise TypeError("stack() takes a task or a cpu")
        if cpu is not None:
            request = GET_STACK.request(descriptor=self._id, cpu=_cpu(cpu))
        else:
            pid = task.pid if isinstance(task, Process) else task
            request = GET_STACK.request(descriptor=self._id, pid=id_number(pid or 0))
        session = self._session
        answers = session.stream(GET_STACK, request, session.long_timeout if timeout is None else timeout)
        (found,) = [stack for answer in answers for stack in answer.stacks]
        if found.HasField("error") and not found.end:
            raise failure(found.error)
        return record(Stack, found)

    def stacks(self, *, timeout: float | None = None) -> list[Stack]:
        """Unwind the kernel stacks of all threads by ascending id; first, as thread 0, those of idle CPUs.

        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :return: stacks; one that could not be begun has no frames and an ``error``.
        :raises AccessError: the policy forbids it.
        :raises FormatError: the image's lists are damaged.
        """
        request = GET_STACK.request(descriptor=self._id)
        session = self._session
        answers = session.stream(GET_STACK, request, session.long_timeout if timeout is None else timeout)
        return [record(Stack, stack) for answer in answers for stack in answer.stacks]


def _cpu(number: int) -> int:
    if not 0 <= number < 1 << 16:
        raise error(Reason.BAD_ARGUMENT, f"{number} is no number of a CPU")
    return number
