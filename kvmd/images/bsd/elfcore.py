"""FreeBSD's full dump of amd64: an ELF core with a LOAD segment for each run of physical memory.

The page tables are found by two symbols of the execfile, kernbase and KPML4phys. Sources: FreeBSD sys/kern/kern_dump.c,
lib/libkvm/kvm_amd64.c (order, masks, texts). As there, the kernel must have been loaded where it was linked, less
kernbase: what FreeBSD 13.1 and later no longer promise.
"""

from __future__ import annotations

from collections.abc import Iterator

from kvmd.errors import KvmError, Reason, error
from kvmd.images.bsd import translate
from kvmd.images.bsd.core import PAGE, Place, fault, read
from kvmd.images.bsd.extents import Extents
from kvmd.images.bsd.namelist import NameList
from kvmd.images.bsd.tables import amd64_pages
from kvmd.images.bsd.translate import NoTranslation
from kvmd.images.linux import elf
from kvmd.images.linux.source import Source
from kvmd.v1 import memory_pb2

_OSABI = 255  # ELFOSABI_STANDALONE, which Linux's cores don't have
_EM_X86_64 = 62
_UNREAD = {4: "pml4e not valid", 3: "pdpe_pa not found", 2: "pde_pa not found", 1: "pte_pa not found"}
_INVALID = {4: "pml4e not valid", 3: "pdpe not valid", 2: "pde not valid", 1: "pte not valid"}
_ABSENT = {3: "1GB page address not in dump", 2: "2MB page address not in dump", 1: "address not in dump"}


def is_mine(source: Source) -> bool:
    """Whether the file begins as FreeBSD's ELF cores do."""
    head = source.read(0, 18)
    return head.startswith(elf.MAGIC) and len(head) == 18 and head[7] == _OSABI and elf.ET_CORE in (head[16], head[17])


class FreebsdElfCore:
    """A full dump (:class:`~kvmd.images.bsd.core.Core`).

    :raises KvmError: CORRUPT_IMAGE, TRUNCATED_IMAGE, UNSUPPORTED_FORMAT; NO_SYMBOLS.
    """

    format = "freebsd-elf"
    machine = "x86_64"
    page_size = PAGE

    def __init__(self, source: Source, names: NameList | None) -> None:
        self._source = source
        head = elf.header(source)
        if head.machine != _EM_X86_64:
            message = f"a FreeBSD full dump of ELF machine {head.machine}, which is not supported"
            raise error(Reason.UNSUPPORTED_FORMAT, message)
        loads = (s for s in elf.segments(source, head) if s.type == elf.PT_LOAD)
        self._memory = Extents((s.paddr, s.filesz, s.offset) for s in loads)
        self._root = self._find_root(names)

    def _find_root(self, names: NameList | None) -> int:
        values = {}
        for name in ("kernbase", "KPML4phys"):
            found = names.symbols.get(name) if names else None
            if found is None:
                raise error(Reason.NO_SYMBOLS, f"bad namelist - no {name}", symbol=name)
            values[name] = found.value
        try:
            root = self._word((values["KPML4phys"] - values["kernbase"]) % (1 << 64))
            self._bytes(root, PAGE)
        except KvmError as e:
            raise error(Reason.CORRUPT_IMAGE, "cannot read KPML4phys") from e
        return root

    def _bytes(self, address: int, length: int) -> bytes:
        return read(self._source, self.physical, address, length)

    def _word(self, address: int) -> int:
        return int.from_bytes(self._bytes(address, 8), "little")

    def physical(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: BEYOND_DUMP.
        """
        return self._find(address, "")

    def _find(self, address: int, text: str) -> Place:
        place = self._memory.find(address)
        if place is None:
            raise fault(
                "freebsd", Reason.BEYOND_DUMP, f"no memory of the dump holds physical address {address:#x}", text
            )
        return place

    def kernel(self, address: int) -> Place:
        """See :class:`~kvmd.images.bsd.core.Core`.

        :raises KvmError: NOT_MAPPED, BEYOND_DUMP.
        """
        try:
            target = translate.amd64(self._word, self._root, address)
        except NoTranslation as outcome:
            if outcome.cause is None:
                text = f"_amd64_vatop: {_INVALID[outcome.level]}"
                raise fault(
                    "freebsd", Reason.NOT_MAPPED, "the page tables have no entry for the address", text
                ) from None
            message = f"a page table of level {outcome.level} can't be read: {outcome.cause.message}"
            raise fault("freebsd", Reason.BEYOND_DUMP, message, f"_amd64_vatop: {_UNREAD[outcome.level]}") from outcome
        place = self._find(target.physical, f"_amd64_vatop: {_ABSENT[target.level]}")
        return Place(place.offset, min(place.length, target.left))

    def pages(self, start: int) -> Iterator[memory_pb2.Page]:
        """See :class:`~kvmd.images.bsd.core.Core`."""
        return amd64_pages(self._bytes, self._root, start, lambda at: self._memory.find(at) is not None)
