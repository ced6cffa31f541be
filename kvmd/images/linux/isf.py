"""Volatility 3's symbol files (ISF, JSON) as execfile: a kernel's symbols and types, made into BTF and read as such.

Source: Volatility's schema 6.2.0 and what dwarf2json writes. Names of typedefs are not in them. Addresses are linked
ones; the banner, which ``constant_data`` of ``linux_banner`` holds, is the image's own if the file is of its build.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from drgn import Program

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux.btf import Btf
from kvmd.images.linux.isf_types import Writer, corrupt, get, number
from kvmd.images.linux.packed import MOST
from kvmd.images.linux.scan.search import Read
from kvmd.images.linux.source import Source
from kvmd.images.linux.symbols import KERNEL, N_EXT, Found, Sections
from kvmd.images.linux.types import Types
from kvmd.images.linux.vmcoreinfo import VmcoreInfo
from kvmd.v1 import symbol_pb2

_PARTS = ("base_types", "user_types", "enums", "symbols")
_BANNER_MAX = 1024
_ALL = (1 << 64) - 1


def is_isf(source: Source) -> bool:
    """Whether a file begins as a JSON object does."""
    return source.read(0, 16).lstrip()[:1] == b"{"


class IsfFile:
    """A symbol file.

    :ivar symbols: by name.
    :ivar dwarf: never.
    :ivar stripped: never.
    :raises KvmError: CORRUPT_DATA, EXEC_FOREIGN.
    """

    dwarf = stripped = False

    def __init__(self, file: File, source: Source, info: VmcoreInfo, prog: Program, read: Read) -> None:
        self.file = file
        try:
            document = self._document(source)
            moved = info.kaslr_offset or 0
            self._check_kernel(document["symbols"], moved, info, read)
            writer = Writer(document)
            self.symbols = self._symbols(document["symbols"], writer, moved)
            self.types = Types(prog, Btf(writer.bytes()))
        except KvmError as e:
            e.metadata.setdefault("path", file.name)
            raise

    @staticmethod
    def _document(source: Source) -> dict[str, Any]:
        data = source.read(0, min(source.size, MOST + 1))
        if len(data) > MOST:
            raise corrupt(f"it has more than {MOST} bytes")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise corrupt(str(e)) from e
        return {part: get(document, part, dict) for part in _PARTS}

    def _check_kernel(self, symbols: dict[str, Any], moved: int, info: VmcoreInfo, read: Read) -> None:
        """Compare the banner with the image's, or, of an image that lacks that page, its release."""
        place = get(symbols, "linux_banner", dict)
        try:
            banner = base64.b64decode(get(place, "constant_data", str), validate=True).rstrip(b"\0")
        except ValueError as e:
            raise corrupt("linux_banner's data") from e
        if not 0 < len(banner) <= _BANNER_MAX:
            raise corrupt("linux_banner's data")
        there = read(number(place.get("address"), _ALL) + moved & _ALL, len(banner))
        if banner != there if there is not None else not banner.startswith(f"Linux version {info.release} ".encode()):
            message = f"{self.file.name} belongs to another kernel than the image's {info.release}"
            raise error(Reason.EXEC_FOREIGN, message, path=self.file.name, release=info.release)

    @staticmethod
    def _symbols(symbols: dict[str, Any], writer: Writer, moved: int) -> dict[str, Found]:
        def address(name: str) -> int:
            value = number(get(symbols[name], "address", int), _ALL) if name in symbols else 0
            return value + moved & _ALL if value >= KERNEL else value

        sections, found = Sections(address), dict[str, Found]()
        for name, each in symbols.items():
            value, kind = address(name), each.get("type")
            code, size = False, 0
            if isinstance(kind, dict):
                code, size = kind.get("kind") == "function", writer.size(kind)
                writer.variable(name, kind)
            n_type = sections.n_type(value, code=code, external=True) | N_EXT
            found[name] = Found(name, value, size, n_type, symbol_pb2.SYMBOL_SOURCE_EXECFILE)
        return found
