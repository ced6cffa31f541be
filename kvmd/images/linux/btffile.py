"""A file of raw BTF as execfile, such as a copy of /sys/kernel/btf/vmlinux: types for a kernel that has none itself.

BTF doesn't say which kernel it is of. It is taken for the image's if every size and offset that VMCOREINFO tells is
what it has, and, where the kernel's symbols bound BTF of its own, if it is as long.
"""

from __future__ import annotations

import re
import struct

from drgn import Program, Type, TypeKind, sizeof

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux.btf import MAGIC, MAX_SIZE, Btf
from kvmd.images.linux.guard import guarded
from kvmd.images.linux.source import Source
from kvmd.images.linux.symbols import Found
from kvmd.images.linux.types import Types
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

_HEADS = (struct.pack("<H", MAGIC), struct.pack(">H", MAGIC))
_FACT = re.compile(r"SIZE\((\w+)\)|OFFSET\((\w+)\.(\w+)\)")
_KINDS = (TypeKind.STRUCT, TypeKind.UNION, TypeKind.TYPEDEF)
_ENOUGH = 10  # facts: those of list_head and the like fit every kernel


def is_btf(source: Source) -> bool:
    """Whether a file begins as raw BTF does."""
    return source.read(0, 2) in _HEADS


def differs(types: Types, info: VmcoreInfo, prog: Program) -> str:
    """What keeps types from being those of the kernel that wrote VMCOREINFO; empty if nothing does."""
    agreed = 0
    for key in info.lines:
        fact = _FACT.fullmatch(key)
        kind = fact and _type(types, prog, fact[1] or fact[2])
        if not fact or kind is None:
            continue
        if fact[1]:
            same = info.size(fact[1]) == sizeof(kind)
        else:
            same = kind.has_member(fact[3]) and kind.member(fact[3]).offset == info.offset(f"{fact[2]}.{fact[3]}")
        if not same:
            return f"{key} is {info.lines[key]} there"
        agreed += 1
    return "" if agreed >= _ENOUGH else "too little can be compared"


def _type(types: Types, prog: Program, name: str) -> Type | None:
    found = types.find(prog, _KINDS, name, None)
    while found is not None and found.kind is TypeKind.TYPEDEF:
        found = found.type
    return found if found is not None and found.kind in _KINDS and found.is_complete() else None


class BtfFile:
    """A kernel's raw BTF.

    :ivar symbols: none: BTF has no addresses.
    :ivar dwarf: never.
    :ivar stripped: never: nobody expects symbols of it.
    :ivar size: in bytes.
    :raises KvmError: CORRUPT_DATA, TRUNCATED_IMAGE, EXEC_FOREIGN.
    """

    dwarf = stripped = False

    def __init__(self, file: File, source: Source, info: VmcoreInfo, prog: Program) -> None:
        self.file = file
        self.symbols: dict[str, Found] = {}
        self.size = source.size
        try:
            self.types = Types(prog, Btf(source.read(0, min(self.size, MAX_SIZE + 1))))
            with guarded(file.name, Reason.CORRUPT_DATA):
                why = differs(self.types, info, prog)
            if why:
                raise self.foreign(info, why)
        except KvmError as e:
            e.metadata.setdefault("path", file.name)
            raise

    def foreign(self, info: VmcoreInfo, why: str) -> KvmError:
        """The error for what is another kernel's."""
        message = f"{self.file.name} holds the types of another kernel than the image's {info.release}: {why}"
        return error(Reason.EXEC_FOREIGN, message, path=self.file.name, release=info.release)
