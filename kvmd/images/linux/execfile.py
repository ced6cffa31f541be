"""A vmlinux that the client named: its symbols, and drgn's DWARF where it has any.

Symbols are linked addresses: KASLR's offset is added to all but absolute ones and those of the per-CPU section.
"""

from __future__ import annotations

import os
import re
import struct

from drgn import Program

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.source import FileSource
from kvmd.images.linux.symbols import N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Found
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import symbol_pb2

_SYMBOL = struct.Struct("<IBBHQQ")
_NT_GNU_BUILD_ID = 3
_SHF_EXECINSTR = 4
_SHN_ABS, _SHN_RESERVED = 0xFFF1, 0xFF00
_STT_NOTYPE_TO_FUNC = (0, 1, 2, 10)
_BANNER = re.compile(rb"Linux version (\S+) ")


class ExecFile:
    """A kernel's ELF file.

    :raises KvmError: EXEC_NOT_ELF, EXEC_STRIPPED, EXEC_FOREIGN.
    """

    def __init__(self, file: File, info: VmcoreInfo) -> None:
        self.file = file
        self._source = FileSource(file.fd)
        if self._source.read(0, 4) != elf.MAGIC:
            raise error(Reason.EXEC_NOT_ELF, f"{file.name} is no ELF file", path=file.name)
        try:
            self._sections = elf.sections(self._source, elf.header(self._source))
            self._check_kernel(info)
            self.symbols = self._symbols(info.kaslr_offset or 0)
        except KvmError as e:
            if e.reason in (Reason.EXEC_FOREIGN, Reason.EXEC_STRIPPED):
                raise
            raise error(Reason.EXEC_NOT_ELF, f"{file.name} is no intact ELF file: {e.message}", path=file.name) from e
        self.dwarf = any(s.name in (".debug_info", ".zdebug_info") for s in self._sections)
        if not self.symbols and not self.dwarf:
            raise error(Reason.EXEC_STRIPPED, f"{file.name} has neither symbols nor DWARF", path=file.name)

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

    def _build_id(self) -> str:
        for section in self._sections:
            if section.type == elf.SHT_NOTE:
                for name, kind, data in elf.notes(elf.content(self._source, section)):
                    if name == b"GNU" and kind == _NT_GNU_BUILD_ID:
                        return data.hex()
        return ""

    def _releases(self) -> list[bytes]:
        """The releases that the banner in the read-only data names."""
        wanted = (s for s in self._sections if s.name in (".rodata", ".init.data", ".data"))
        return [r for s in wanted for r in _BANNER.findall(elf.content(self._source, s))]

    def _symbols(self, kaslr: int) -> dict[str, Found]:
        table = next((s for s in self._sections if s.type == elf.SHT_SYMTAB), None)
        if table is None or table.link >= len(self._sections):
            return {}
        strings = elf.content(self._source, self._sections[table.link])
        kinds = [self._kind(section) for section in self._sections]
        data = elf.content(self._source, table)
        found: dict[str, Found] = {}
        for offset, info, _, section, value, size in _SYMBOL.iter_unpack(data[: len(data) // 24 * 24]):
            if not section or info & 15 not in _STT_NOTYPE_TO_FUNC or not offset:
                continue
            if section == _SHN_ABS:
                kind, moved = N_ABS, 0
            elif section < min(_SHN_RESERVED, len(kinds)):
                kind, moved = kinds[section]
            else:
                continue
            external = N_EXT if info >> 4 in (1, 2) else 0
            name = elf.c_string(strings, offset)
            if name not in found or (external and not found[name].n_type & N_EXT):
                address = (value + moved * kaslr) & ((1 << 64) - 1)
                found[name] = Found(name, address, size, kind | external, symbol_pb2.SYMBOL_SOURCE_EXECFILE)
        return found

    @staticmethod
    def _kind(section: elf.Section) -> tuple[int, int]:
        """nlist's type of a section's symbols, and whether KASLR moves them."""
        if section.name == ".data..percpu":
            return N_ABS, int(section.address != 0)
        if section.flags & _SHF_EXECINSTR:
            return N_TEXT, 1
        return (N_BSS if section.type == elf.SHT_NOBITS else N_DATA), 1

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
