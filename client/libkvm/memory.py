"""Reads of kernel memory."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator

from kvmd.v1 import memory_pb2
from libkvm.bounds import address_number, id_number, length_number
from libkvm.calls import READ, READ_STREAM, READ_V
from libkvm.convert import failure
from libkvm.errors import KvmError, Reason, error
from libkvm.handle import Handle
from libkvm.packed import plain
from libkvm.records import RangeResult

Buffer = bytearray | memoryview
MIB = 1 << 20
_RANGES = 16384  # of one ReadV request,
_BATCH = 16 * MIB  # and what their lengths may add up to
_SLOWEST = MIB  # bytes a second of a stream, before its default deadline passes


class Memory(Handle):
    """What can be read of an image's memory."""

    def read(
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Read memory, all or nothing; see kvm_read(3) and kvm_uread(3).

        :param address: a virtual address of the kernel, with ``physical`` a physical one, or with ``pid`` one of
            that process's.
        :param length: how many bytes, of any size; beyond 1 MiB they are streamed.
        :param timeout: seconds to wait; None: the client's, and beyond 1 MiB a second more for each MiB.
        :return: exactly ``length`` bytes.
        :raises FaultError: its ``address`` is the first byte that can't be read, and ``metadata['readable']``
            says how many before it can.
        :raises ProcessError: there is no such process, or it has no memory of its own.
        """
        if length > MIB:
            return b"".join(self.stream(address, length, physical=physical, pid=pid, timeout=timeout))
        space, process = space_number(physical, pid)
        session = self._session
        request = READ.request(
            descriptor=self._id, address=address_number(address), length=length_number(length), space=space,
            pid=process, zstd=session.compress,
        )  # fmt: skip
        return _whole(plain(session.unary(READ, request, timeout), length), length)

    def readinto(
        self,
        address: int,
        buffer: Buffer,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> int:
        """Fill a writable buffer with memory; otherwise as :meth:`read`.

        :param buffer: a bytearray, or a memoryview of anything contiguous.
        :return: the buffer's size in bytes.
        :raises FaultError: as :meth:`read`; the readable bytes are in the buffer.
        """
        with memoryview(buffer) as whole, whole.cast("B") as view:
            if view.nbytes > MIB:
                done = 0
                for chunk in self.stream(address, view.nbytes, physical=physical, pid=pid, timeout=timeout):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
                return done
            [result] = self.readv([(address, view.nbytes)], physical=physical, pid=pid, timeout=timeout)
            if len(result.data) > view.nbytes:
                raise _unlike(len(result.data), view.nbytes)
            view[: len(result.data)] = result.data
            if result.error is not None:
                raise readable_part(result.error, len(result.data))
            return len(_whole(result.data, view.nbytes))

    def stream(
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> Generator[bytes]:
        """Read a range of any size in chunks of at most 1 MiB.

        The call begins with the first chunk asked for; closing the iterator ends it early.

        :param timeout: seconds until the last chunk; None: the client's and a second more for each MiB.
        :raises FaultError: as :meth:`read`, after every byte before the fault.
        """
        space, process = space_number(physical, pid)
        session = self._session
        request = READ_STREAM.request(
            descriptor=self._id, address=address_number(address), length=length_number(length), space=space,
            pid=process, zstd=session.compress,
        )  # fmt: skip
        deadline = session.timeout + length / _SLOWEST if timeout is None else timeout
        done = 0
        try:
            with contextlib.closing(session.stream(READ_STREAM, request, deadline)) as answers:
                for answer in answers:
                    data = plain(answer, min(MIB, length - done))
                    done += len(data)
                    if done > length:
                        raise _unlike(done, length)
                    yield data
        except KvmError as fault:
            raise readable_part(fault, done) from None
        if done != length:
            raise _unlike(done, length)

    def views(
        self,
        address: int,
        length: int,
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> Generator[memoryview]:
        """Look at a range of any size, in pieces of at most 1 MiB, with no copy where memory is shared with kvmd.

        That is so for a client on the same host that reads physical or user memory, or an image without a page cache.
        A piece is good until the next is asked for, and raises ValueError after that; closing the iterator ends it
        early. Otherwise as :meth:`stream`.

        :raises FaultError: as :meth:`stream`.
        """
        with contextlib.closing(self.stream(address, length, physical=physical, pid=pid, timeout=timeout)) as chunks:
            for chunk in chunks:
                with memoryview(chunk) as view:
                    yield view

    def readv(
        self,
        ranges: Iterable[tuple[int, int]],
        *,
        physical: bool = False,
        pid: int | None = None,
        timeout: float | None = None,
    ) -> list[RangeResult]:
        """Read many ranges in few calls; each has its own outcome.

        :param ranges: pairs of address and length, each of at most 1 MiB.
        :param timeout: seconds to wait for each call of up to 16 MiB; None: the client's.
        :return: a result for each range, in their order.
        """
        results: list[RangeResult] = []
        session = self._session
        for batch in _batches(ranges, *space_number(physical, pid)):
            request = READ_V.request(descriptor=self._id, ranges=batch, zstd=session.compress)
            answer = session.unary(READ_V, request, timeout)
            if len(answer.results) != len(batch):
                raise _unlike(len(answer.results), len(batch))
            results += map(_result, answer.results, batch)
        return results


def _batches(
    ranges: Iterable[tuple[int, int]], space: memory_pb2.AddressSpace, pid: int
) -> Iterator[list[memory_pb2.Range]]:
    batch: list[memory_pb2.Range] = []
    size = 0
    for address, length in ranges:
        if batch and (len(batch) == _RANGES or size + length > _BATCH):
            yield batch
            batch, size = [], 0
        piece = memory_pb2.Range(
            address=address_number(address), length=length_number(length, 2**32), space=space, pid=pid
        )
        batch.append(piece)
        size += length
    if batch:
        yield batch


def space_number(physical: bool, pid: int | None) -> tuple[memory_pb2.AddressSpace, int]:
    """Answer the address space and the process that a read means.

    :raises RequestError: there can be no such process.
    """
    if pid is None:
        return (memory_pb2.ADDRESS_SPACE_PHYSICAL if physical else memory_pb2.ADDRESS_SPACE_KERNEL), 0
    if physical:
        raise TypeError("an address is physical or of a process (pid), not both")
    return memory_pb2.ADDRESS_SPACE_USER, id_number(pid)


def _result(result: memory_pb2.RangeResult, wanted: memory_pb2.Range) -> RangeResult:
    why = failure(result.error) if result.HasField("error") else None
    return RangeResult(plain(result, wanted.length), why)


def _whole(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise _unlike(len(data), length)
    return data


def _unlike(got: int, wanted: int) -> KvmError:
    return error(Reason.INTERNAL, f"the daemon answered {got} of {wanted}, and no error")


def readable_part(fault: KvmError, count: int) -> KvmError:
    """Say in an error how much of a read there is."""
    fault.metadata["readable"] = str(count)
    return fault
