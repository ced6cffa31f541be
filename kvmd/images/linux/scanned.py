"""What is found of a kernel by looking through its image, symbol table and BTF; and where that was, to be remembered.

Where another dump of the build had them is but a hint. It counts if the same bytes are there in this one, in pages of
the image that nobody can write: what a process of that kernel made look like tables is not taken for them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from drgn import Program, TypeKind

from kvmd.errors import KvmError, Reason
from kvmd.images.linux.btf import Btf, BtfIndex
from kvmd.images.linux.btffile import differs
from kvmd.images.linux.btfscan import blob_at, blobs, the_kernels
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.index import Index, Scanned, settled
from kvmd.images.linux.kimage import KernelImage, image_of
from kvmd.images.linux.memory import Memory, in_chunks
from kvmd.images.linux.order import LITTLE
from kvmd.images.linux.program import Dump
from kvmd.images.linux.scan.kallsyms import of_kernel
from kvmd.images.linux.scan.tables import Tables
from kvmd.images.linux.symbols import Kallsyms
from kvmd.images.linux.types import Types
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import symbol_pb2

_FUNCTIONS = 2048  # that are compared, or more than half as many
_NAMED = 0.95  # of BTF's functions; others were freed after boot, or inlined here and not there (Debian's: 98.3 %)
_SCAN = symbol_pb2.SYMBOL_SOURCE_SCAN


class ByScan:
    """What is looked for in one kernel.

    :param named: whether its symbol table has a function.
    :ivar tables: where the symbol tables are, if that is worth remembering.
    :ivar btf_at: where BTF is, likewise.
    """

    def __init__(self, dump: Dump, memory: Memory, named: Callable[[str], bool]) -> None:
        self._dump, self._memory, self._named = dump, memory, named
        self._stext = dump.vmcoreinfo.symbol("_stext") or 0
        self.tables: Tables | None = None
        self.btf_at: int | None = None

    @cached_property
    def _image(self) -> KernelImage | None:
        return image_of(self._memory, self._stext or None)

    def symbols(self, stext: int, index: Index | None) -> tuple[Kallsyms | None, bool]:
        """The symbol table; and whether it is where it is remembered.

        :raises KvmError: AMBIGUOUS.
        """
        known = index.scanned(self._constant, stext) if index else None
        if known is not None:
            self.tables, places = known
            return Kallsyms(places.all, places, _SCAN), True
        found = of_kernel(self._memory.attempt, stext, self._dump.layout.page_size)
        if found is None:
            return None, False
        if found.tables is not None and self._constant(found.tables.start, found.tables.length) is not None:
            self.tables = found.tables
        symbols = found.index()
        return Kallsyms(lambda: symbols, source=_SCAN), False

    def _constant(self, address: int, length: int) -> bytes | None:
        """Read what is as the kernel was built; None if it can't be read, or may be something else."""
        if self._image is None or not 0 < address < address + length <= 1 << 64:
            return None
        try:
            known = self._is_constant(self._image, address, length)
            return in_chunks(self._memory.kernel, address, length) if known else None
        except KvmError:
            return None

    def _is_constant(self, image: KernelImage, address: int, length: int) -> bool:
        # s390x may map all memory as it does the image: there the distance does not tell.
        return self._memory.order == LITTLE and image.constant(address, length)

    def types(self, index: Index | None) -> tuple[Types | None, bool]:
        """The types; and whether they are where they are remembered.

        :raises KvmError: AMBIGUOUS.
        """
        if self._image is None:
            return None, False
        place = index.btf_place if index else None
        if index is not None and place is not None:
            data = self._blob(self._stext + place)
            known = index.types(data) if data else None
            types = self._types_of(data, known) if known else None
            if types is not None:
                self.btf_at = self._stext + place
                return types, True
        found = the_kernels(blobs(self._image, self._memory.kernel, self._memory.order), self._types_of)
        if found is None:
            return None, False
        self.btf_at = found[0] if self._blob(found[0]) else None
        return found[1], False

    def _types_of(self, data: bytes, known: BtfIndex | None = None) -> Types | None:
        """The types of BTF, if it is the kernel's."""
        prog = self._dump.prog
        try:
            with guarded("BTF", Reason.CORRUPT_DATA):
                types = Types(prog, Btf(data, index=known))
                info = self._dump.vmcoreinfo
                # A text that was made anew tells no sizes.
                told = not differs(types, info, prog) if info.size("list_head") else self._agrees(types, info, prog)
                return types if told else None
        except KvmError:
            return None

    def _agrees(self, types: Types, info: VmcoreInfo, prog: Program) -> bool:
        """Whether types have the functions that the kernel's symbol table has, and the struct that was found in it."""
        functions = types.btf.functions()
        some = functions[:: -(-len(functions) // _FUNCTIONS) or 1]
        named = sum(self._named(types.btf.record(number).name) for number in some)
        uts = types.find(prog, (TypeKind.STRUCT,), "uts_namespace", None)
        same = uts is not None and uts.member("name").offset == info.offset("uts_namespace.name")
        return same and len(some) > _FUNCTIONS // 2 and named > _NAMED * len(some)

    def _blob(self, address: int) -> bytes:
        """BTF that is as the kernel was built."""
        if self._image is None or not 0 < address < 1 << 64:
            return b""
        data = blob_at(self._image, self._memory.kernel, self._memory.order, address)
        return data if data and self._is_constant(self._image, address, len(data)) else b""

    def btf(self) -> bytes:
        """The BTF that was found, to be remembered."""
        return b"" if self.btf_at is None else self._blob(self.btf_at)

    def found(self) -> Scanned:
        """What was found, to be remembered."""
        btf = None if self.btf_at is None else self.btf_at - self._stext
        span = self.tables and self._constant(self.tables.start, self.tables.length)
        if not self.tables or not span:
            return Scanned(btf=btf)
        return Scanned(settled(self.tables, span, self._stext), self.tables.start - self._stext, btf)
