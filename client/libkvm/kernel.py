"""An opened image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from libkvm.bounds import length_number
from libkvm.calls import GET_DUMP_HEADER, GET_INFO, GET_LOG, NLIST
from libkvm.convert import record
from libkvm.errors import no_such_symbol
from libkvm.fast.memory import Memory
from libkvm.following import Following
from libkvm.handle import Handle
from libkvm.pages import Pages
from libkvm.processes import Processes
from libkvm.records import DumpHeader, Info, LogRecord, Symbol
from libkvm.stacks import Stacks
from libkvm.system import System
from libkvm.writing import Writing

_NAMES = 4096  # of one Nlist request,
_NAME_BYTES = 512  # and the longest of them: kallsyms itself ends at 512


class Kernel(Memory, Following, Writing, Pages, Processes, Stacks, System, Handle):
    """The running kernel or a crash dump, opened by :meth:`libkvm.Client.open`.

    A context manager; safe to use from several threads, which do not disturb each other.
    """

    _info: Info | None = None

    @property
    def info(self) -> Info:
        """Facts about the image; of the running kernel, those of this moment."""
        session = self._session
        if self._info is None or self._info.live:
            answer = session.unary(GET_INFO, GET_INFO.request(descriptor=self._id))
            self._info = record(Info, answer.info)
        return self._info

    def symbol(self, name: str, *, timeout: float | None = None) -> Symbol:
        """Look a symbol up; see kvm_nlist(3).

        :raises SymbolNotFoundError: there is none of this name (a LookupError too).
        """
        found = self.symbols([name], timeout=timeout)[name]
        if found is None:
            raise no_such_symbol(name)
        return found

    def symbols(self, names: Iterable[str], *, timeout: float | None = None) -> dict[str, Symbol | None]:
        """Look many symbols up in few calls.

        :param timeout: seconds to wait for each call of up to 4096 names; None: the client's.
        :return: each name's symbol, or None if there is none.
        :raises FormatError: the image has no symbol table.
        """
        if isinstance(names, str):
            raise TypeError("symbols() takes several names; symbol() takes one")
        table: dict[str, Symbol | None] = dict.fromkeys(names)
        for batch in _batches(name for name in table if _possible(name)):
            answer = self._session.unary(NLIST, NLIST.request(descriptor=self._id, names=batch), timeout)
            table.update((found.name, record(Symbol, found)) for found in answer.symbols if found.found)
        return table

    def dump_header(self, memory_bytes: int = 0, *, timeout: float | None = None) -> DumpHeader:
        """Make the header of a NetBSD dump's file; see kvm_dump(3).

        :param memory_bytes: how much memory will follow.
        :param timeout: seconds to wait; None: the client's.
        :raises FormatError: the image is a dump device's, opened without ``dump_offset``.
        :raises UnsupportedError: it is no NetBSD dump.
        """
        request = GET_DUMP_HEADER.request(descriptor=self._id, memory_bytes=length_number(memory_bytes))
        answer = self._session.unary(GET_DUMP_HEADER, request, timeout)
        return record(DumpHeader, answer)

    def log(self, *, timeout: float | None = None) -> list[LogRecord]:
        """Read the kernel's printk ring buffer, oldest record first.

        :param timeout: seconds to wait; None: the client's ``long_timeout``.
        :raises FormatError: the buffer is damaged.
        """
        session = self._session
        request = GET_LOG.request(descriptor=self._id)
        answers = session.stream(GET_LOG, request, session.long_timeout if timeout is None else timeout)
        return [record(LogRecord, entry) for answer in answers for entry in answer.records]


def _possible(name: str) -> bool:
    """Tell whether a symbol may have this name: a longer or unencodable one can only fail the whole request."""
    return 0 < len(name.encode("utf-8", "replace")) <= _NAME_BYTES and name.isprintable()


def _batches(names: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for name in names:
        batch.append(name)
        if len(batch) == _NAMES:
            yield batch
            batch = []
    if batch:
        yield batch
