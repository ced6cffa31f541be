"""One kernel, dumped or running: memory, symbols and types, each loaded when first needed, and drgn wired to them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import NamedTuple

import drgn.helpers.linux.kallsyms as drgns
from drgn import FaultError, FindObjectFlags, Object, Program, Symbol, SymbolIndex, Type, TypeKindSet

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux import btf as formats
from kvmd.images.linux import (
    btffile,
    index,
    isf,
    kallsyms,
    kimage,
    modsyms,
    modtypes,
    packed,
    refs,
    scanned,
    types,
    variables,
)
from kvmd.images.linux import execfile as elfs
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.memory import Memory, in_chunks
from kvmd.images.linux.objects import finder
from kvmd.images.linux.order import BIG
from kvmd.images.linux.program import Dump
from kvmd.images.linux.symbols import Found, Kallsyms, Lookup, SymbolTable, as_drgn, vmcoreinfo_lookup


class Sources(NamedTuple):
    """Where symbols and types come from; what is None is looked for in the kernel's memory.

    :ivar symbols: the kernel's and its modules' symbols; may raise NO_SYMBOLS when it is asked.
    :ivar btf: gives the kernel's BTF; raises KvmError if it can't, and memory is tried.
    :ivar module_btf: give each module's.
    """

    symbols: SymbolTable | None = None
    btf: modtypes.Blob | None = None
    module_btf: tuple[modtypes.Blob, ...] | None = None


class Kernel:
    """What the rest of the package works with.

    :raises KvmError: EXEC_NOT_ELF, EXEC_FOREIGN, CORRUPT_DATA for a bad execfile.
    """

    def __init__(self, dump: Dump, execfile: File | None = None, sources: Sources | None = None) -> None:
        self.dump = dump
        self._sources = sources or Sources()
        self.prog: Program = dump.prog
        self.info = dump.vmcoreinfo
        self.memory = Memory(dump)
        self.execfile = self._open(execfile) if execfile else None
        self._loading = False
        self._index: index.Index | None = None
        self._served = set[str]()
        self.prog.register_symbol_finder("kvmd", self._find_symbols, enable_index=0)
        if self.execfile and self.execfile.dwarf and isinstance(self.execfile, elfs.ExecFile):
            self.execfile.load_dwarf(self.prog)
        else:
            self.prog.register_type_finder("kvmd", self._find_type, enable_index=0)
            self.prog.register_object_finder("kvmd", self._find_object, enable_index=-1)

    def _open(self, execfile: File) -> elfs.ExecFile | btffile.BtfFile | isf.IsfFile:
        source = packed.unpacked(execfile)
        if btffile.is_btf(source):
            return btffile.BtfFile(execfile, source, self.info, self.prog)
        if isf.is_isf(source):
            return isf.IsfFile(execfile, source, self.info, self.prog, self.memory.attempt)
        return elfs.ExecFile(execfile, source, self.info)

    @property
    def types_source(self) -> str:
        """``dwarf``, ``btf``, ``isf``, or empty if there are none."""
        if self.execfile and self.execfile.dwarf:
            return "dwarf"
        if self.execfile and isinstance(self.execfile, isf.IsfFile):
            return "isf"
        return "btf" if self._try_types else ""

    @property
    def symbols_source(self) -> str:
        """``execfile``, ``kallsyms``, ``scan`` (kallsyms that was looked for) or ``vmcoreinfo``."""
        if self.execfile and self.execfile.symbols:
            return "execfile"
        try:
            found = self._kallsyms
        except KvmError:
            found = None
        if found is None:
            return "vmcoreinfo"
        return "scan" if found is self.__dict__.get("_scan") else "kallsyms"

    @cached_property
    def _kallsyms(self) -> SymbolTable | None:
        """The given table, else that in memory; None where the kernel or the dump has none to read.

        :raises KvmError: AMBIGUOUS.
        """
        if self._sources.symbols is not None:
            return self._sources.symbols
        return self._told_kallsyms or self._scanned_kallsyms

    @cached_property
    def _told_kallsyms(self) -> SymbolTable | None:
        """The table that VMCOREINFO tells of, since 6.0."""
        try:
            if (places := self._places()) is not None:
                self._served.add("symbols")
                return Kallsyms(self._load_kallsyms, places)
            loaded = self._load_kallsyms()
        except KvmError:
            return None
        return Kallsyms(lambda: loaded)

    def _load_kallsyms(self) -> SymbolIndex:
        # drgn asks the finders for the types of what it reads here, which need these symbols: it has its own then.
        self._loading = True
        try:
            with guarded("kallsyms", Reason.NO_SYMBOLS):
                return drgns.load_vmlinux_kallsyms(self.prog)
        finally:
            self._loading = False

    def use_index(self, data: memoryview) -> None:
        """Take the index of a build that may be this kernel's; to be called before anything is looked up.

        What is none counts for nothing.
        """
        with suppress(ValueError):
            self._index = index.Index(data)

    def _raw_kallsyms(self) -> kallsyms.RawKallsyms | None:
        try:
            return kallsyms.read_raw(self.info.symbols(), self.memory.kernel, self.memory.order)
        except KvmError:  # a page that only the whole needs, and no look-up of drgn's
            return None

    def _places(self) -> index.SymbolPlaces | None:
        stext = self.info.symbol("_stext")
        if self._index is None or stext is None or (raw := self._raw_kallsyms()) is None:
            return None
        return self._index.symbols(raw, stext)

    def index_inputs(self) -> bytes:
        """What an index of this kernel is made of; nothing where there is one, or none has been missed.

        :raises KvmError: the fault of a page that holds it.
        """
        if self.dump.live or self.execfile is not None or self._served == {"symbols", "types"}:
            return b""
        written = self.written("__start_BTF") is not None
        types = "_types" in self.__dict__ and (written or self._by_scan.btf_at is not None)
        raw = self._raw_kallsyms() if types else None
        needed = ({"types"} if types else set()) | ({"symbols"} if raw or self._by_scan.tables else set())
        if needed <= self._served:
            return b""
        blob = self._btf_in_memory() if types and written else self._by_scan.btf()
        return index.inputs(raw, blob, self._by_scan.found())

    @property
    def _scanned_kallsyms(self) -> SymbolTable | None:
        if isinstance(self._scan, KvmError):
            raise self._scan
        return self._scan

    @cached_property
    def _scan(self) -> SymbolTable | KvmError | None:
        """The table that is found by looking for it, or what kept it from being found: it is looked for once."""
        stext = self.info.symbol("_stext")
        if stext is None or self.dump.live or self.memory.order == BIG:  # the tables that are known are little-endian
            return None
        self._loading = True
        try:
            found, remembered = self._by_scan.symbols(stext, self._index)
            self._served.update({"symbols"} if remembered else ())
            return found
        except KvmError as e:
            return e
        finally:
            self._loading = False

    @cached_property
    def _lookups(self) -> list[Lookup]:
        """Where the kernel's own symbols are looked up, in order."""
        lookups: list[Lookup] = []
        if self.execfile and self.execfile.symbols:
            lookups.append(self.execfile.symbols.get)
        # Looked for only when the execfile does not know a name.
        lookups.append(lambda name: self._kallsyms(name) if self._kallsyms else None)
        return [*lookups, vmcoreinfo_lookup(self.info)]

    def written(self, name: str) -> Found | None:
        """Look a symbol of the kernel proper up where it is written."""
        return next((found for lookup in self._lookups if (found := lookup(name))), None)

    def builtin(self, name: str) -> Found | None:
        """Look up a symbol of the kernel proper.

        :raises KvmError: AMBIGUOUS for data of a kernel whose symbol table has none, if several things could be it.
        """
        return self.written(name) or self._objects(name)

    @cached_property
    def _objects(self) -> Lookup:
        """What finds data that no symbol table tells of."""
        known = self.dump.architecture in refs.DECODERS
        if not known or self.written("init_task") is not None or self.dump.live or self.image is None:
            return lambda _name: None
        return finder.Objects(self, self.image)

    def symbol(self, name: str) -> Found | None:
        """Look up a symbol; modules come last."""
        return self.builtin(name) or self._module_symbol(name)

    def _module_symbol(self, name: str) -> Found | None:
        if self._sources.symbols is not None:
            return self._sources.symbols.module(name)
        return self._module_symbols.get(name)

    def address(self, name: str) -> int:
        """The address of a symbol that must be there.

        :raises KvmError: NO_SYMBOLS, UNSUPPORTED.
        """
        found = self.builtin(name)
        if found is None and self.memory.blind:
            raise self.memory.unsupported()
        if found is None:
            message = f"no address of {name}: the image has no symbol table; name a vmlinux as execfile"
            raise error(Reason.NO_SYMBOLS, message, symbol=name)
        return found.value

    @cached_property
    def _module_symbols(self) -> dict[str, Found]:
        try:
            self.need_types()
            with guarded("the list of modules", Reason.CORRUPT_DATA):
                return modsyms.module_symbols(self.prog, self.memory.kernel)
        except KvmError:
            return {}

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what drgn raises while it reads the kernel's structures into exact errors.

        :raises KvmError: the fault's own reason (NOT_MAPPED, EXCLUDED ...), NO_TYPES, CORRUPT_DATA.
        """
        try:
            with guarded(what, Reason.CORRUPT_DATA):
                yield
        except KvmError as e:
            if isinstance(e.__cause__, FaultError):
                raise self.memory.explain(e.__cause__.address) from e
            raise

    def need_types(self) -> None:
        """Load the types, or say why there are none.

        :raises KvmError: NO_TYPES, NO_SYMBOLS, UNSUPPORTED, CORRUPT_DATA, or the fault of the pages that hold them.
        """
        if not (self.execfile and self.execfile.dwarf):
            self._types  # noqa: B018 - a cached property

    @property
    def btf(self) -> formats.Btf | None:
        """The kernel's BTF; None if its types come from elsewhere, or there are none."""
        types = None if self.execfile and self.execfile.dwarf else self._try_types
        return types.btf if types else None

    @cached_property
    def _types(self) -> types.Types:
        if isinstance(self.execfile, btffile.BtfFile):
            return self._types_of(self.execfile)
        if isinstance(self.execfile, isf.IsfFile):
            return self.execfile.types
        if isinstance(self.execfile, elfs.ExecFile) and self.execfile.btf:
            return types.Types(self.prog, formats.Btf(self.execfile.btf))
        if self._sources.btf is not None:
            with suppress(KvmError):
                return types.Types(self.prog, formats.Btf(self._sources.btf()))
        if self.written("__start_BTF") is None and (found := self._types_by_scan) is not None:
            if isinstance(found, KvmError):
                raise type(found)(found.reason, found.message, found.metadata)
            return found
        data = self._btf_in_memory()
        known = self._index.types(data) if self._index else None
        if known is not None:
            self._served.add("types")
        return types.Types(self.prog, formats.Btf(data, index=known))

    def _types_of(self, file: btffile.BtfFile) -> types.Types:
        start, stop = self.written("__start_BTF"), self.written("__stop_BTF")
        if start and stop and stop.value - start.value != file.size:
            raise file.foreign(self.info, f"the kernel's BTF has {stop.value - start.value} bytes")
        return file.types

    def _btf_in_memory(self) -> bytes:
        start, stop = self.written("__start_BTF"), self.written("__stop_BTF")
        if self.memory.blind:
            raise self.memory.unsupported()
        if start is None or stop is None:
            reason = Reason.NO_TYPES if self._kallsyms or self.execfile else Reason.NO_SYMBOLS
            raise error(reason, "no types can be found in the image; name a vmlinux with DWARF as execfile")
        length = stop.value - start.value
        if not 0 < length <= formats.MAX_SIZE:
            raise error(Reason.CORRUPT_DATA, "the kernel's BTF makes no sense: its bounds")
        return in_chunks(self.memory.kernel, start.value, length)

    @cached_property
    def _by_scan(self) -> scanned.ByScan:
        return scanned.ByScan(self.dump, self.memory, lambda name: self.written(name) is not None)

    @cached_property
    def image(self) -> kimage.KernelImage | None:
        """The kernel's code and data; None where its page tables can't be walked."""
        start = self.written("_stext")
        return kimage.image_of(self.memory, start.value if start else None)

    @cached_property
    def _types_by_scan(self) -> types.Types | KvmError | None:
        """What a look through all of the image found; once, for who asks next may be told the same."""
        try:
            found, remembered = self._by_scan.types(self._index)
        except KvmError as e:
            return e
        self._served.update({"types"} if remembered else ())
        return found

    @cached_property
    def _try_types(self) -> types.Types | None:
        try:
            return self._types
        except KvmError:
            return None

    @cached_property
    def _module_types(self) -> modtypes.ModuleTypes:
        return modtypes.ModuleTypes(self.prog, self._types, self._module_btf)

    def _module_btf(self) -> Iterable[modtypes.Blob]:
        if self._sources.module_btf is not None:
            return self._sources.module_btf
        head = self.builtin("btf_modules")
        return modtypes.blobs_in_memory(self.prog, head.value, self.memory.kernel) if head else ()

    @cached_property
    def _variables(self) -> variables.Variables:
        return variables.Variables(self.prog, self._types, self.builtin)

    def _find_type(self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None) -> Type | None:
        types = None if self._loading else self._try_types
        if types is None:
            return None
        return types.find(prog, kinds, name, filename) or self._module_types.find(prog, kinds, name, filename)

    def _find_object(self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        types = None if self._loading else self._try_types
        if types is None:
            return None
        found = self._variables.find(prog, name, flags, filename)
        if found is None and flags & FindObjectFlags.CONSTANT:
            found = self._module_types.constant(name)
        return found

    def _find_symbols(self, _prog: Program, name: str | None, address: int | None, _one: bool) -> list[Symbol]:
        if self._loading:
            return []
        if name is None:
            return self._kallsyms.at(address) if self._kallsyms and address is not None else []
        found = self.builtin(name)
        if found is None or (address is not None and not found.value <= address < found.value + max(found.size, 1)):
            return []
        return [as_drgn(found)]
