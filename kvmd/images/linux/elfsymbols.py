"""An ELF file's symbol table, as nlist(3) has it."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux import elf
from kvmd.images.linux.order import LITTLE, Order
from kvmd.images.linux.source import Source
from kvmd.images.linux.symbols import N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Found
from kvmd.v1 import symbol_pb2

_SYMBOL = "IBBHQQ"
_SHF_EXECINSTR = 4
_SHN_ABS, _SHN_RESERVED = 0xFFF1, 0xFF00
_STT_NOTYPE_TO_FUNC = (0, 1, 2, 10)


def symbols(
    source: Source, sections: Sequence[elf.Section], moved_by: int = 0, order: Order = LITTLE
) -> dict[str, Found]:
    """Read the symbols; of several with one name a global one counts, else the first.

    :param moved_by: how far KASLR moved the kernel: added to all but absolute and per-CPU values.
    :param order: the file's.
    :raises KvmError: TRUNCATED_IMAGE, CORRUPT_IMAGE.
    """
    table = next((s for s in sections if s.type == elf.SHT_SYMTAB), None)
    if table is None or table.link >= len(sections):
        return {}
    strings = elf.content(source, sections[table.link])
    kinds = [_kind(section) for section in sections]
    data = elf.content(source, table)
    found: dict[str, Found] = {}
    for offset, info, _, section, value, size in struct.iter_unpack(order + _SYMBOL, data[: len(data) // 24 * 24]):
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
            address = (value + moved * moved_by) & ((1 << 64) - 1)
            found[name] = Found(name, address, size, kind | external, symbol_pb2.SYMBOL_SOURCE_EXECFILE)
    return found


def _kind(section: elf.Section) -> tuple[int, int]:
    """nlist's type of a section's symbols, and whether KASLR moves them."""
    if section.name == ".data..percpu":
        return N_ABS, int(section.address != 0)
    if section.flags & _SHF_EXECINSTR:
        return N_TEXT, 1
    return (N_BSS if section.type == elf.SHT_NOBITS else N_DATA), 1


def stripped(file: File) -> KvmError:
    """What a name list that has no names answers: to lookups, since libkvm opens it."""
    return error(Reason.EXEC_STRIPPED, f"{file.name} has no symbols: it was stripped", path=file.name)
