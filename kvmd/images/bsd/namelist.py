"""The kernel's file that the client named: its symbols, whose machine's it is, and whether it is NetBSD's.

Source: the generic ABI; NetBSD sys/sys/exec_elf.h for the note that its kernels carry, stripped or not.
"""

from __future__ import annotations

from functools import cached_property

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.elfsymbols import stripped, symbols
from kvmd.images.linux.source import FileSource
from kvmd.images.linux.symbols import Found

_MACHINES = {62: "x86_64", 183: "aarch64"}
_NT_NETBSD_IDENT = 1
_IDENT, _MOST_IDENT = ".note.netbsd.ident", 4096


class NameList:
    """A kernel's ELF file. Opening reads its headers; the symbols are read when they are first asked for.

    :ivar machine: uname(2)'s name of the architecture; empty of one that is not known.
    :raises KvmError: EXEC_NOT_ELF.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._source = FileSource(file.fd)
        if self._source.read(0, 4) != elf.MAGIC:
            raise error(Reason.EXEC_NOT_ELF, f"{file.name} is no ELF file", path=file.name)
        try:
            head = elf.header(self._source)
            self._sections = elf.sections(self._source, head)
            self.netbsd = any(self._is_netbsd(section) for section in self._sections)
        except KvmError as e:
            raise self._broken(e) from e
        self.machine = _MACHINES.get(head.machine, "")

    def _broken(self, why: KvmError) -> KvmError:
        message = f"{self.file.name} is no intact ELF file: {why.message}"
        return error(Reason.EXEC_NOT_ELF, message, path=self.file.name)

    def _is_netbsd(self, section: elf.Section) -> bool:
        if section.type != elf.SHT_NOTE or section.name != _IDENT or section.size > _MOST_IDENT:
            return False
        found = elf.notes(elf.content(self._source, section))
        return any(name == b"NetBSD" and kind == _NT_NETBSD_IDENT for name, kind, _ in found)

    @cached_property
    def symbols(self) -> dict[str, Found]:
        """The symbols by name.

        :raises KvmError: EXEC_STRIPPED, EXEC_NOT_ELF.
        """
        try:
            found = symbols(self._source, self._sections)
        except KvmError as e:
            raise self._broken(e) from e
        if not found:
            raise stripped(self.file)
        return found

    def check(self, machine: str) -> None:
        """Compare with the dump's machine.

        :raises KvmError: EXEC_FOREIGN.
        """
        if self.machine != machine:
            message = f"{self.file.name} is no {machine} kernel, as the dump's is"
            raise error(Reason.EXEC_FOREIGN, message, path=self.file.name)
