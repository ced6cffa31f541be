"""A vmlinux that the client named: its symbols, and drgn's DWARF where it has any.

Symbols are linked addresses: KASLR's offset is added to all but absolute ones and those of the per-CPU section.
"""

from __future__ import annotations

import os
import re

from drgn import Program

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.elfsymbols import symbols
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.source import FileSource, Source
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

_NT_GNU_BUILD_ID = 3
_BANNER = re.compile(rb"Linux version (\S+) ")


class ExecFile:
    """A kernel's ELF file.

    :ivar symbols: by name; none of a file that is stripped.
    :ivar dwarf: whether it has DWARF, which drgn reads of a file that is not packed.
    :ivar btf: its BTF, that counts if it has no DWARF; empty if there is none.
    :raises KvmError: EXEC_NOT_ELF, EXEC_FOREIGN.
    """

    def __init__(self, file: File, source: Source, info: VmcoreInfo) -> None:
        self.file = file
        self._source = source
        if self._source.read(0, 4) != elf.MAGIC:
            raise error(Reason.EXEC_NOT_ELF, f"{file.name} is no ELF file", path=file.name)
        try:
            head = elf.header(self._source)
            self._order = head.order
            self._sections = elf.sections(self._source, head)
            self._check_kernel(info)
            self.symbols = symbols(self._source, self._sections, info.kaslr_offset or 0, head.order)
            self._check_place(info)
            btf = next((s for s in self._sections if s.name == ".BTF"), None)
            self.btf = elf.content(self._source, btf) if btf else b""
        except KvmError as e:
            if e.reason is Reason.EXEC_FOREIGN:
                raise
            raise error(Reason.EXEC_NOT_ELF, f"{file.name} is no intact ELF file: {e.message}", path=file.name) from e
        debug = any(s.name in (".debug_info", ".zdebug_info") for s in self._sections)
        self.dwarf = debug and isinstance(source, FileSource)

    @property
    def stripped(self) -> bool:
        """Whether it has neither symbols nor types."""
        return not self.symbols and not self.dwarf and not self.btf

    def _check_kernel(self, info: VmcoreInfo) -> None:
        mine = self._build_id()
        if mine and info.build_id:
            same = mine == info.build_id
        else:
            releases = {match.decode("utf-8", "replace") for match in self._releases()}
            same = info.release in releases
        if not same:
            message = f"{self.file.name} belongs to another kernel than the image's {info.release}"
            raise error(Reason.EXEC_FOREIGN, message, path=self.file.name, release=info.release)

    def _check_place(self, info: VmcoreInfo) -> None:
        """Where KASLR moved the kernel from may be wrong in a VMCOREINFO that was made anew."""
        ours, theirs = self.symbols.get("_stext"), info.symbol("_stext")
        if ours is not None and theirs is not None and ours.value != theirs:
            message = f"{self.file.name} is linked elsewhere than the image's {info.release}: _stext is at {theirs:#x}"
            message = f"{message} there, and would be at {ours.value:#x}"
            raise error(Reason.EXEC_FOREIGN, message, path=self.file.name, release=info.release)

    def _build_id(self) -> str:
        for section in self._sections:
            if section.type == elf.SHT_NOTE:
                for name, kind, data in elf.notes(elf.content(self._source, section), self._order):
                    if name == b"GNU" and kind == _NT_GNU_BUILD_ID:
                        return data.hex()
        return ""

    def _releases(self) -> list[bytes]:
        """The releases that the banner in the read-only data names."""
        wanted = (s for s in self._sections if s.name in (".rodata", ".init.data", ".data"))
        return [r for s in wanted for r in _BANNER.findall(elf.content(self._source, s))]

    def load_dwarf(self, prog: Program) -> None:
        """Give drgn the file for its types.

        :raises KvmError: EXEC_FOREIGN if drgn doesn't take it for this kernel's.
        """
        with guarded(self.file.name, Reason.EXEC_NOT_ELF):
            prog.create_loaded_modules()
            module = prog.main_module()
            module.try_file(self.file.name, fd=os.dup(self.file.fd))  # which drgn closes
            if module.wants_debug_file():
                message = f"{self.file.name}'s DWARF is not this kernel's"
                raise error(Reason.EXEC_FOREIGN, message, path=self.file.name)
