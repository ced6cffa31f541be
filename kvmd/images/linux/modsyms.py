"""Symbols of loaded modules: every module keeps its ELF symbol table in kernel memory.

Source: Linux include/linux/module.h (struct mod_kallsyms; typetab since 5.2) and the ELF ABI (Elf64_Sym).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from drgn import Object, Program
from drgn.helpers.linux.module import for_each_module

from kvmd.errors import KvmError
from kvmd.images.linux.memory import Read, in_chunks
from kvmd.images.linux.order import order_of
from kvmd.images.linux.symbols import N_BSS, N_DATA, N_EXT, N_TEXT, Found
from kvmd.v1 import symbol_pb2

_SYMBOL = "IBBHQQ"
_MAX_SYMBOLS = 1 << 17
_MAX_MODULES = 1 << 12
_LETTERS = {"t": N_TEXT, "w": N_TEXT, "b": N_BSS}


def module_symbols(prog: Program, read: Read) -> dict[str, Found]:
    """Collect every module's symbols, the first of a name; a module that can't be read is left out.

    :param read: reads kernel memory exactly, at most a chunk.
    """
    found: dict[str, Found] = {}
    for count, module in enumerate(for_each_module(prog)):
        if count >= _MAX_MODULES:
            break
        try:
            for symbol in symbols_of(module, read):
                found.setdefault(symbol.name, symbol)
        except KvmError:
            continue
    return found


def symbols_of(module: Object, read: Read) -> Iterator[Found]:
    """Read one module's symbols, as its ELF file had them; undefined ones are left out."""
    table = module.kallsyms
    if not table:
        return
    count = min(table.num_symtab.value_(), _MAX_SYMBOLS)
    name = module.name.string_().decode("utf-8", "replace")
    row_of = struct.Struct(order_of(module.prog_.platform) + _SYMBOL)
    data = in_chunks(read, table.symtab.value_(), count * row_of.size)
    letters = read(table.typetab.value_(), count) if table[0].type_.has_member("typetab") else b""
    rows = list(row_of.iter_unpack(data))
    strings = _strings(read, table.strtab.value_(), max((row[0] for row in rows), default=0))
    for index, (offset, info, _, section, value, size) in enumerate(rows):
        text = strings[offset : strings.find(b"\0", offset)]
        if not text or not section:  # an undefined symbol is another's
            continue
        letter = chr(letters[index]) if letters else "d"
        kind = _LETTERS.get(letter.lower(), N_TEXT if info & 15 == 2 else N_DATA)
        external = N_EXT if info >> 4 in (1, 2) else 0
        source = symbol_pb2.SYMBOL_SOURCE_KALLSYMS
        yield Found(text.decode("utf-8", "replace"), value, size, kind | external, source, name)


def _strings(read: Read, address: int, last: int) -> bytes:
    """Read a string table up to the end of the string at offset ``last``."""
    data = in_chunks(read, address, min(last, 16 << 20))
    while len(data) - last < 512:
        data += read(address + len(data), 64)
        if b"\0" in data[last:]:
            break
    return data
