"""Memory of processes by their page tables, swapped out or not, a run of pages at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.memory import moved
from kvmd.images.linux.order import words
from kvmd.images.linux.pagetable import PageTables, absent
from kvmd.images.linux.shared import Shared
from kvmd.images.linux.swap.chain import Chain, Slot
from kvmd.images.linux.swap.entry import Decoder, Kind, Options
from kvmd.images.linux.swap.reader import SwapReader
from kvmd.images.linux.vmcoreinfo import release_of

_TRIES = 8
_UFFD_WP = 1  # PTE_MARKER_UFFD_WP
_GUARD = 4  # PTE_MARKER_GUARD, since 6.13
_WHY = {
    Kind.POISONED: "the page's memory has a hardware error",
    Kind.DEVICE: "the page is in a device's memory",
    Kind.ERROR: "the page could not be read back from swap",
    Kind.MARKER: "the page was lost, to a hardware error or one of swap",
}


@dataclass(slots=True)
class _Span:
    """The part of a read that one last table maps.

    :ivar words: the entries of its pages; if ``level`` is above 1, the only entry, which ends the walk there.
    :ivar first: the address of the first entry's page.
    """

    address: int
    length: int
    words: tuple[int, ...]
    level: int
    first: int
    parts: list[bytes] = field(default_factory=list)
    done: int = 0

    def add(self, data: bytes) -> None:
        """Add what was read next."""
        self.parts.append(data)
        self.done += len(data)


class UserPages:
    """The memory of one kernel's processes.

    :param swap: gives what reads swap, when it is needed.
    """

    def __init__(self, kernel: Kernel, swap: Callable[[], SwapReader]) -> None:
        self._kernel, self._memory, self._swap = kernel, kernel.memory, swap
        self._live = kernel.dump.live
        self._page = kernel.dump.layout.page_size

    @cached_property
    def _shared(self) -> Shared:
        return Shared(self._kernel, self._swap().frames, self._swap().xarrays)

    @cached_property
    def _decoder(self) -> Decoder:
        """How this kernel writes swap entries."""
        has = self._kernel.builtin
        release = release_of(self._kernel.info.release)
        options = Options(
            memory_failure=has("memory_failure") is not None,
            migration=has("migrate_pages") is not None,
            device_private=any(has(name) for name in ("make_device_exclusive", "make_device_exclusive_range")),
            userfaultfd=has("mwriteprotect_range") is not None,
        )
        bits = (self._kernel.info.number("MAX_PHYSMEM_BITS") or 52) + 1 - self._page.bit_length()
        machine = self._kernel.dump.architecture.name.lower()
        try:
            return Decoder(machine, release, options, bits, mended=has("l1tf_mitigation") is not None)
        except LookupError:
            kernel = f"{machine} Linux {self._kernel.info.release or 'of no release'}"
            raise error(Reason.UNSUPPORTED, f"swap entries of {kernel} are not known") from None

    def read(self, mm: int, root: int, address: int, length: int) -> Iterator[bytes]:
        """Read through a process's page tables, in pieces.

        :param mm: the address of its mm_struct.
        :param root: the kernel virtual address of its top-level table (``mm->pgd``).
        :raises KvmError: after the pieces before the fault: NOT_MAPPED, NOT_PRESENT, EXCLUDED and so on; UNSUPPORTED
            where page tables of the architecture are not known.
        """
        tables, top = self._memory.walkable(), self._memory.translate(root).physical
        region = self._page * tables.paging.count(1)
        chain: Chain | None = None
        if self._live and "_shared" in self.__dict__:
            self._shared.forget()

        def swapped(slots: list[Slot]) -> Iterator[bytes]:
            nonlocal chain
            chain = chain or self._swap().chain()
            return chain.pages(slots)

        while length > 0:
            size = min(length, region - address % region)
            for _ in range(_TRIES):
                span = self._span(tables, top, address, size)
                failure = self._fill(tables, mm, span, swapped)
                # A page that moved meanwhile may hold what is another process's by now.
                if not self._live or self._steady(self._span(tables, top, address, size), span, failure):
                    break
                chain = None
            else:
                raise failure or error(Reason.CHANGED, "the pages were moved each time; try again", address=address)
            yield from span.parts
            if failure is not None:
                raise moved(failure, address + span.done)
            address += size
            length -= size

    def slots(self, root: int, address: int, count: int) -> list[Slot | None]:
        """Give the swap slots of so many pages; None: the page isn't swapped out.

        :param address: of the first page.
        :raises KvmError: as :meth:`read`, but for the pages themselves.
        """
        tables, top = self._memory.walkable(), self._memory.translate(root).physical
        found: list[Slot | None] = []
        for at in range(address, address + count * self._page, self._page):
            span = self._span(tables, top, at, 1)
            found.append(next(iter(self._slots(tables, span.words)), None) if span.level == 1 else None)
        return found

    @staticmethod
    def _steady(now: _Span, then: _Span, failure: KvmError | None) -> bool:
        """Whether what was read while the kernel ran counts: no entry changed, and no tree was caught in between."""
        torn = failure is not None and failure.reason is Reason.CORRUPT_DATA
        return (now.words, now.level) == (then.words, then.level) and not torn

    def _span(self, tables: PageTables, top: int, address: int, length: int) -> _Span:
        first = address & -self._page
        if address >= tables.paging.user_end:
            raise error(Reason.NOT_MAPPED, f"{address:#x} is no address of a process's", address=address)
        try:
            word, level = tables.last(top, address)
            if level > 1:
                return _Span(address, length, (word,), level, first)
            count = -(-(address - first + length) // self._page)
            data = self._memory.physical(word + 8 * tables.paging.index(address, 1), 8 * count)
        except KvmError as e:
            raise moved(e, address) from e
        return _Span(address, length, words(data, tables.paging.order), 1, first)

    def _fill(
        self, tables: PageTables, mm: int, span: _Span, swapped: Callable[[list[Slot]], Iterator[bytes]]
    ) -> KvmError | None:
        """Read what can be read of a span; what keeps the rest from it is the answer."""
        try:
            while span.done < span.length:
                self._next(tables, mm, span, swapped)
        except KvmError as failure:
            return failure
        return None

    def _next(self, tables: PageTables, mm: int, span: _Span, swapped: Callable[[list[Slot]], Iterator[bytes]]) -> None:
        """Read the next run."""
        at = span.address + span.done
        index = (at - span.first) // self._page if span.level == 1 else 0
        entry = span.words[index]
        frame, size = tables.paging.frame(entry, span.level), 1 << tables.paging.shift(span.level)
        if frame is not None:
            end = (at & -size) + size
            while span.level == 1 and index + 1 < len(span.words) and end < span.address + span.length:
                index += 1
                if tables.paging.frame(span.words[index], 1) != frame + (end - (at & -size)):
                    break
                end += size
            self._physical(span, frame + at % size, min(end, span.address + span.length) - at)
            return
        empty = tables.paging.empty(entry, span.level)
        known = self._decoder.decode(entry) if not empty and span.level <= 2 else None
        if known is None or (known.kind is Kind.MARKER and known.offset & _UFFD_WP):
            self._whole(span, at, self._shared.page(mm, at & -self._page, swapped))
        elif known.kind is Kind.MIGRATION:
            left = min(size - at % size, span.address + span.length - at)
            self._physical(span, known.offset * self._page + at % size, left)
        elif known.kind is Kind.SWAP and span.level == 1:
            for piece in swapped(self._slots(tables, span.words[index:])):
                self._whole(span, span.address + span.done, piece)
        elif known.kind is Kind.MARKER and known.offset & _GUARD:
            raise error(Reason.NOT_MAPPED, f"{at:#x} is in a guard page", address=at)
        else:
            raise self._lost(at, entry, span.level, known.kind)

    @staticmethod
    def _lost(at: int, entry: int, level: int, kind: Kind) -> KvmError:
        if kind not in _WHY:
            return absent(at, entry, level, empty=False)
        return error(Reason.NOT_PRESENT, _WHY[kind], address=at, entry=f"{entry:#x}", level=level)

    def _slots(self, tables: PageTables, entries: tuple[int, ...]) -> list[Slot]:
        """The swap slots of entries, as far as they are such."""
        slots = []
        for entry in entries:
            if tables.paging.empty(entry, 1) or tables.paging.frame(entry, 1) is not None:
                break
            known = self._decoder.decode(entry)
            if known.kind is not Kind.SWAP:
                break
            slots.append((known.type, known.offset))
        return slots

    def _whole(self, span: _Span, at: int, data: bytes) -> None:
        """Add whole pages, of which the first holds an address, as far as they are wanted."""
        span.add(data[at % self._page : at % self._page + span.address + span.length - at])

    def _physical(self, span: _Span, start: int, length: int) -> None:
        try:
            span.add(self._memory.physical(start, length))
        except KvmError as e:
            if readable := int(e.metadata.get("readable", "0")):
                span.add(self._memory.physical(start, readable))
            raise
