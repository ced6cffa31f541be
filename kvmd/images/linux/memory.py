"""Memory of an image, by kernel virtual, user virtual and physical address, with exact errors.

What is plain in a dump is read here, by its page tables; all else by drgn. After that faulted the page tables tell
which byte is at fault and why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from drgn import Architecture, FaultError

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux import paging_arm64, paging_s390x, paging_x86
from kvmd.images.linux.order import number, order_of, words
from kvmd.images.linux.pagetable import PageTables, Place
from kvmd.images.linux.recent import RecentPages

if TYPE_CHECKING:
    from kvmd.images.linux.program import Dump

_TEXT = {
    Reason.BEYOND_DUMP: "no memory of the image holds physical address {:#x}",
    Reason.EXCLUDED: "the page at {:#x} was left out when the dump was made",
    Reason.SHORT_FILE: "the dump file ends before the page at {:#x}",
    Reason.CORRUPT_PAGE: "the page at {:#x} is in the dump, but can't be decompressed",
}
Read = Callable[[int, int], bytes]
_FEW = 4
"""Reads of no more pages than that are made page by page."""
_PLACES = 4096
"""Of so many pages, and areas of large pages, is kept where they are."""
# Who knows what an architecture's kernels tell of their page tables.
_PAGING = {
    Architecture.X86_64: paging_x86,
    Architecture.AARCH64: paging_arm64,
    Architecture.S390X: paging_s390x,
}


def in_chunks(read: Read, address: int, length: int) -> bytes:
    """Read any length with what reads at most a chunk."""
    return b"".join(read(address + at, min(CHUNK, length - at)) for at in range(0, length, CHUNK))


class Memory:
    """Reads of one kernel. Addresses and lengths are in bytes.

    :ivar order: the kernel's byte order.
    :ivar blind: whether no kernel virtual address can be read, as nobody knows the architecture's page tables.
    """

    def __init__(self, dump: Dump) -> None:
        self._prog = dump.prog
        self._layout = dump.layout
        self._page = dump.layout.page_size
        self._into = dump.into
        self._recent = RecentPages(dump.into, self._page) if dump.into else None
        self._places: dict[int, int] = {}
        self._areas: dict[int, int] = {}
        self._shift = 0
        self._large = (0, 0, 0)
        self._architecture = dump.architecture
        self.order = order_of(dump.prog.platform)
        # drgn doesn't know them, either; of the running kernel the source translates.
        self.blind = dump.architecture not in _PAGING and not dump.live
        self.tables: PageTables | None = None
        self.root = 0
        known = _PAGING.get(dump.architecture)
        if known is not None and (told := known.of_kernel(dump.vmcoreinfo, self._page)) is not None:
            paging, self.root = told
            self.tables, self._shift = PageTables(self.physical, paging), paging.shift(2)

    def kernel(self, address: int, length: int) -> bytes:
        """Read kernel virtual memory exactly.

        :raises KvmError: NOT_MAPPED, NOT_PRESENT, EXCLUDED, BEYOND_DUMP, SHORT_FILE, CORRUPT_PAGE, UNSUPPORTED, with
            metadata ``address`` (the first byte that can't be read) and ``readable`` (how many bytes before it can).
        """
        self._check(address, length)
        if (plain := self._plain(address, length)) is not None:
            return plain
        try:
            data: bytes = self._prog.read(address, length)
        except (FaultError, ValueError) as e:
            raise self._blame(address, length, self._prog.read, self.explain) from e
        return data

    def number(self, address: int, size: int = 8) -> int:
        """Read an unsigned number of the kernel's.

        :raises KvmError: as :meth:`kernel`.
        """
        return number(self.kernel(address, size), self.order)

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Read so many of 64 bits.

        :raises KvmError: as :meth:`kernel`.
        """
        return words(self.kernel(address, 8 * count), self.order)

    def _plain(self, address: int, length: int) -> bytes | None:
        """Read kernel virtual memory without drgn; None if that can't be, for whatever reason."""
        if self._recent is None or self.tables is None:
            return None
        if length > _FEW * self._page:
            data = bytearray(length)
            return bytes(data) if self.kernel_into(address, memoryview(data)) else None
        pieces: list[bytes] = []
        try:
            while length > 0:
                count = min(length, self._page - address % self._page)
                piece = self._recent.read(self._place(address), count)
                if piece is None:
                    return None
                pieces.append(piece)
                address, length = address + count, length - count
        except KvmError:
            return None
        return b"".join(pieces)

    def _place(self, address: int) -> int:
        """Where a byte of the kernel's is in physical memory, of a kernel whose page tables are known.

        Most of what is read is in the direct mapping, which large pages map: what one entry of a table above the last
        maps is kept as one.

        :raises KvmError: as :meth:`translate`.
        """
        shift = self._shift
        start = self._areas.get(address >> shift)
        if start is not None:
            return start + (address & (1 << shift) - 1)
        number, inside = divmod(address, self._page)
        start = self._places.get(number)
        if start is None:
            place = self.translate(address - inside)
            start = place.physical
            if place.length > self._page:
                self._areas[address >> shift] = start - (address - inside & (1 << shift) - 1)
            else:
                self._places[number] = start
            if len(self._places) + len(self._areas) > _PLACES:
                self._places.clear()
                self._areas.clear()
        return start + inside

    def kernel_into(self, address: int, into: memoryview) -> bool:
        """Fill a buffer with kernel virtual memory, if it is mapped by pages, or runs of them, that are large to it.

        drgn would ask for the same bytes through a call back into Python, and copy them twice more.

        :returns: whether it is filled; if not, :meth:`kernel` will do it, or say why not.
        """
        while self._into is not None and len(into):
            try:
                physical, there = self._near(address)
            except KvmError:
                return False
            size = min(len(into), there)
            if (size < len(into) and size <= self._page) or not self.physical_into(physical, into[:size]):
                return False
            address, into = address + size, into[size:]
        return self._into is not None

    def _near(self, address: int) -> tuple[int, int]:
        """Where an address lies, and how many bytes follow: mostly in the same run of pages as the last one."""
        start, end, physical = self._large
        if not start <= address < end:
            start, end, physical = self._large = address, *self._run(address)
        return physical + address - start, end - address

    def _run(self, address: int) -> tuple[int, int]:
        """Where the page of an address ends, or those of its last table that follow it in both memories; and where
        the address lies."""
        place = self.translate(address)
        if place.length > self._page:
            return address + place.length, place.physical
        tables, wanted = self.walkable(), place.physical & -self._page
        end = address & -self._page
        for _, _, frame in islice(self.leaves(end), tables.paging.count(1) - tables.paging.index(end, 1)):
            if frame != wanted:
                break
            end, wanted = end + self._page, wanted + self._page
        return max(end, address + place.length), place.physical

    def physical_into(self, address: int, into: memoryview) -> bool:
        """The same with physical memory."""
        try:
            return self._into is not None and self._into(address, into)
        except KvmError:
            return False

    def physical(self, address: int, length: int) -> bytes:
        """Read physical memory exactly.

        :raises KvmError: EXCLUDED, BEYOND_DUMP, SHORT_FILE, CORRUPT_PAGE; metadata as in :meth:`kernel`.
        """
        self._check(address, length)
        if self._recent is not None and 0 < length <= self._page - address % self._page:
            with suppress(KvmError):
                if (plain := self._recent.read(address, length)) is not None:
                    return plain
        try:
            data: bytes = self._prog.read(address, length, True)
        except (FaultError, ValueError) as e:
            raise self._blame(address, length, lambda a, n: self._prog.read(a, n, True), self._why_physical) from e
        return data

    def attempt(self, address: int, length: int, *, physical: bool = False) -> bytes | None:
        """Read at most a chunk without asking why if not all of it can be read: for looking through much memory."""
        if physical and self._into is not None:
            data = bytearray(length)
            return bytes(data) if self.physical_into(address, memoryview(data)) else None
        try:
            found: bytes = self._prog.read(address, length, physical)
        except (FaultError, ValueError, KvmError):
            return None
        return found

    def translate(self, address: int, root: int | None = None) -> Place:
        """Translate a virtual address of the kernel.

        :param root: the physical address of another top-level table than the kernel's.
        :raises KvmError: as :meth:`~kvmd.images.linux.pagetable.PageTables.translate`; UNSUPPORTED.
        """
        tables = self.walkable()
        if root is None and address < tables.paging.kernel:
            raise error(Reason.NOT_MAPPED, f"{address:#x} is no address of the kernel's", address=address)
        return tables.translate(self.root if root is None else root, address)

    def leaves(self, start: int) -> Iterator[tuple[int, int, int | None]]:
        """Walk the kernel's page tables, as :meth:`~kvmd.images.linux.pagetable.PageTables.leaves`."""
        return self.walkable().leaves(self.root, start)

    def holds(self, physical: int) -> bool:
        """Whether the image has the page of a physical address."""
        return self._layout.trouble(physical) is None

    @property
    def levels(self) -> int | None:
        """How many levels the kernel's own page tables have; None if that can't be told."""
        try:
            return self.tables.paging.top(self.root, self.physical) if self.tables else None
        except KvmError:
            return None

    def walkable(self) -> PageTables:
        """The page tables.

        :raises KvmError: UNSUPPORTED where their layout is not known.
        """
        if self.tables is None:
            raise self.unsupported()
        return self.tables

    def unsupported(self) -> KvmError:
        """Why addresses can't be translated here."""
        name = self._architecture.name
        return error(Reason.UNSUPPORTED, f"page tables of this {name} kernel can't be walked", architecture=name)

    @staticmethod
    def _check(address: int, length: int) -> None:
        if not 0 <= address < 1 << 64 or not 0 <= length <= CHUNK:
            raise error(Reason.BAD_ARGUMENT, f"a read of {length} bytes at {address:#x} makes no sense")

    def _blame(
        self, address: int, length: int, read: Callable[[int, int], bytes], explain: Callable[[int], KvmError]
    ) -> KvmError:
        """Find the first page that can't be read, and say why."""
        at, end = address, min(address + length, 1 << 64)
        while at < end:
            piece = min(self._page - at % self._page, end - at)
            try:
                read(at, piece)
            except (FaultError, ValueError):
                return moved(explain(at), at, at - address)
            at += piece
        # Each page can be read, so the range runs over the end of the address space.
        return error(Reason.NOT_MAPPED, "the address space ends here", address=end - 1, readable=end - address)

    def explain(self, address: int) -> KvmError:
        """Say why a byte of kernel virtual memory can't be read."""
        if self.blind:
            return self.unsupported()
        if self.tables is None:
            return error(Reason.NOT_MAPPED, f"no page can be read at {address:#x}", address=address)
        try:
            place = self.translate(address)
        except KvmError as e:
            return e
        return self._why_physical(place.physical)

    def _why_physical(self, address: int) -> KvmError:
        reason = self._layout.trouble(address) or Reason.CORRUPT_PAGE
        return error(reason, _TEXT[reason].format(address), address=address)


def moved(e: KvmError, address: int, readable: int = 0) -> KvmError:
    """The same error, for the virtual address that led to it."""
    words = {key: value for key, value in e.metadata.items() if key not in ("address", "readable")}
    return error(e.reason, e.message, address=address, readable=readable, **words)
