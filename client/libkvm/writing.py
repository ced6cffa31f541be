"""Writes of the running kernel's memory."""

from __future__ import annotations

from libkvm.bounds import address_number
from libkvm.calls import WRITE
from libkvm.convert import failure
from libkvm.errors import KvmError
from libkvm.handle import Handle

Readable = bytes | bytearray | memoryview
_MOST = 1 << 20  # bytes of one Write request


class Writing(Handle):
    """What can be done to an image's memory."""

    def write(self, address: int, data: Readable, *, timeout: float | None = None) -> int:
        """Write memory of the running kernel; see kvm_write(3).

        The image must have been opened with ``write=True``, and the policy must give the verb ``write``. Nothing is
        atomic: a write that fails in the middle has changed what is before the fault.

        :param address: a virtual address of the kernel.
        :param data: the bytes, of any number.
        :param timeout: seconds to wait for each call of up to 1 MiB; None: the client's.
        :return: the number of bytes, all of which are written.
        :raises UnsupportedError: the image is a crash dump (also for no bytes at all).
        :raises AccessError: the image was opened read-only, or the policy forbids it.
        :raises FaultError: its ``address`` is the first byte that can't be written, and ``metadata['written']``
            says how many before it were.
        """
        start = address_number(address)
        done = 0
        with memoryview(data) as whole, whole.cast("B") as view:
            while done < view.nbytes or not done:
                piece = bytes(view[done : done + _MOST])
                request = WRITE.request(descriptor=self._id, address=address_number(start + done), data=piece)
                try:
                    answer = self._session.unary(WRITE, request, timeout)
                except KvmError as fault:
                    raise _written(fault, done) from None
                if answer.HasField("error"):
                    raise _written(failure(answer.error), done + answer.written)
                done += len(piece)
                if not piece:
                    break
        return done


def _written(fault: KvmError, count: int) -> KvmError:
    fault.metadata["written"] = str(count)
    return fault
