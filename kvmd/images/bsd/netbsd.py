"""NetBSD's crash dumps of amd64 and aarch64: kcore's memory, and the page tables that its CPU data tell of.

Sources: NetBSD sys/arch/amd64/include/kcore.h 1.3, sys/arch/aarch64/include/kcore.h; lib/libkvm/kvm_x86_64.c,
kvm_aarch64.c 1.7 for the translation and its texts. A physical address that no run of memory holds is an error here;
libkvm reads what lies behind the dump (docs/quirks.md, Q23).
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable, Iterable, Iterator

from kvmd.errors import KvmError, Reason, error
from kvmd.images.bsd import translate
from kvmd.images.bsd.core import PAGE, Place, fault, read
from kvmd.images.bsd.extents import Extents
from kvmd.images.bsd.kcore import MACHINES, Headers
from kvmd.images.bsd.tables import amd64_pages
from kvmd.images.bsd.translate import NoTranslation, Target
from kvmd.images.linux.source import Source
from kvmd.v1 import memory_pb2

_MOST_AARCH64_RUNS = 1 << 10
Run = tuple[int, int]


class NetbsdCore:
    """A NetBSD dump (:class:`~kvmd.images.bsd.core.Core`).

    :raises KvmError: CORRUPT_IMAGE.
    """

    format = "netbsd-kcore"

    def __init__(self, source: Source, headers: Headers) -> None:
        self._source = source
        self.headers = headers
        self.machine = MACHINES[headers.machine].name
        amd64 = self.machine == "x86_64"
        runs = (_amd64_runs if amd64 else _aarch64_runs)(headers.cpu)
        self._memory = Extents(_placed(runs, headers.data))
        self._first, self._second = struct.unpack_from("<QQ", headers.cpu)
        self._translate: Callable[[int], Target] = self._amd64 if amd64 else self._aarch64
        self.page_size = PAGE if amd64 else {1: 16384, 3: 65536}.get(self._first >> 30 & 3, PAGE)

    def physical(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: BEYOND_DUMP.
        """
        place = self._memory.find(address)
        if place is None:
            raise fault("netbsd", Reason.BEYOND_DUMP, f"no memory of the dump holds physical address {address:#x}")
        return place

    def kernel(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: NOT_MAPPED, BEYOND_DUMP.
        """
        try:
            target = self._translate(address)
        except NoTranslation as outcome:
            raise self._refusal(outcome) from outcome
        place = self.physical(target.physical)
        return Place(place.offset, min(place.length, target.left))

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.bsd.core.Core`; of amd64 alone."""
        if self.machine != "x86_64":
            raise error(Reason.UNSUPPORTED, "page tables of a NetBSD dump can be walked of amd64 kernels only")
        return amd64_pages(self._bytes, self._first, start, lambda at: self._memory.find(at) is not None)

    def _amd64(self, address: int) -> Target:
        return translate.amd64(self._word, self._first, address)  # ptdpaddr

    def _aarch64(self, address: int) -> Target:
        return translate.aarch64(self._word, self._first, self._second, address)  # kh_tcr1, kh_ttbr1

    def _bytes(self, address: int, length: int) -> bytes:
        return read(self._source, self.physical, address, length)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._bytes(address, 8), "little")

    def _refusal(self, outcome: NoTranslation) -> KvmError:
        texts = self._texts_amd64 if self.machine == "x86_64" else self._texts_aarch64
        text = texts(outcome.level, outcome.cause is not None)
        if outcome.cause is None:
            return fault("netbsd", Reason.NOT_MAPPED, "the page tables have no entry for the address", text)
        message = f"a page table of level {outcome.level} can't be read: {outcome.cause.message}"
        return fault("netbsd", Reason.BEYOND_DUMP, message, f"{text}: {os.strerror(errno.EINVAL)}")

    @staticmethod
    def _texts_amd64(level: int, unread: bool) -> str:
        if unread:
            return "could not read PTE" if level == 1 else f"could not read PT level {level} entry"
        return f"invalid translation (invalid {'PTE' if level == 1 else f'level {level} PDE'})"

    @staticmethod
    def _texts_aarch64(level: int, unread: bool) -> str:
        if level <= 0:
            return "" if level else "invalid kernel virtual address"
        return "could not read pte" if unread else "invalid translation (invalid pte)"


def _placed(runs: Iterable[Run], offset: int) -> Iterator[tuple[int, int, int]]:
    for start, size in runs:
        yield start, size, offset
        offset += size


def _amd64_runs(cpu: bytes) -> Iterator[Run]:
    """The runs of memory after ptdpaddr and their count."""
    count = struct.unpack_from("<8xQ", cpu)[0] if len(cpu) >= 16 else 1 << 63
    if 16 + 16 * count > len(cpu):
        raise error(Reason.CORRUPT_IMAGE, "the CPU data are shorter than their runs of memory")
    return struct.iter_unpack("<QQ", cpu[16 : 16 + 16 * count])


def _aarch64_runs(cpu: bytes) -> Iterator[Run]:
    """The runs of memory after kh_tcr1 and kh_ttbr1: ended by an empty one, or in later kernels counted first.

    No header tells which: a count is no multiple of a page's size, as the start of a run is.
    """
    if len(cpu) < 24:
        raise error(Reason.CORRUPT_IMAGE, "the CPU data are too short")
    (count,) = struct.unpack_from("<16xQ", cpu)
    if 0 < count <= _MOST_AARCH64_RUNS:
        if 24 + 16 * count > len(cpu):
            raise error(Reason.CORRUPT_IMAGE, "the CPU data are shorter than their runs of memory")
        return struct.iter_unpack("<QQ", cpu[24 : 24 + 16 * count])
    every: Iterator[Run] = struct.iter_unpack("<QQ", cpu[16 : len(cpu) & -16])
    return itertools.takewhile(lambda run: run[1] > 0, every)
