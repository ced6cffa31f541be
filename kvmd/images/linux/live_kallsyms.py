"""/proc/kallsyms: the symbols of the running kernel and of the modules that are loaded just now.

Source: Linux kernel/kallsyms.c (s_show): ``%px %c %s``, and for a module's ``\\t[module]``. The kernel's own are first,
by ascending address. Without CAP_SYSLOG at the open, or with kernel.kptr_restrict=2, every address is zero.
"""

from __future__ import annotations

import re
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property

from drgn import Symbol

from kvmd.errors import Reason, error
from kvmd.images.base import File
from kvmd.images.linux.live_files import whole
from kvmd.images.linux.symbols import KERNEL, N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Found, Sections, as_drgn
from kvmd.v1 import symbol_pb2

_LINE = re.compile(rb"^([0-9a-f]{16}) ([!-~]) ([^\s]+)(?:\t\[([^\s\]]+)\])?$", re.M)
_MAX_BYTES = 256 << 20
_SHOWN = re.compile(rb"^(?!0{16})[0-9a-f]{16} ", re.M)
_TRIES = 3
_FEW = 48  # names that are looked for in the text: from there on to make a table of it is quicker
_PATIENCE = 5.0
# Of modules, whose sections have no bounds: nm(1)'s letters; small ones are local.
_LETTERS = {b"t": N_TEXT, b"w": N_TEXT, b"b": N_BSS, b"a": N_ABS}

Row = tuple[int, bytes, bytes]
"""Address, letter, module (empty: none)."""


class Text:
    """One reading of the file. The first few names are found without a table of all, which takes a while to make.

    :raises KvmError: NO_SYMBOLS if it holds none, or hides their addresses.
    """

    def __init__(self, text: bytes) -> None:
        if not _LINE.search(text):
            raise error(Reason.NO_SYMBOLS, "/proc/kallsyms is empty: the kernel lacks CONFIG_KALLSYMS, or it is hidden")
        if not _SHOWN.search(text):
            message = "/proc/kallsyms hides its addresses: the daemon needs CAP_SYSLOG and kernel.kptr_restrict below 2"
            raise error(Reason.NO_SYMBOLS, message, path="/proc/kallsyms")
        self._text = text
        self._sought = 0

    @cached_property
    def table(self) -> Table:
        """All of it."""
        return Table(self._text)

    def kernel(self, name: bytes) -> tuple[Row, int] | None:
        """A symbol of the kernel proper, and how far the next one is: as :class:`Table` has it."""
        self._sought += 1
        if self._sought > _FEW:
            row = self.table.kernel.get(name)
            return (row, self.table.size(row[0])) if row else None
        first = None
        for match in self._lines(name):
            row = int(match[1], 16), match[2], b""
            if first is None or row[1].isupper():
                first = row, match.end()
            if row[1].isupper():  # a global one, which no other can be instead of
                break
        return (first[0], self._gap(first[0][0], first[1])) if first else None

    def _lines(self, name: bytes) -> Iterator[re.Match[bytes]]:
        """The lines of the kernel's symbols of a name, in order."""
        sought, at = b" %b\n" % name, 0
        while (at := self._text.find(sought, at)) >= 0:
            line = _LINE.match(self._text, self._text.rfind(b"\n", 0, at) + 1)
            if line and line[3] == name:
                yield line
            at += 1

    def _gap(self, address: int, at: int) -> int:
        """From an address to the next symbol's, which begins at or after a place in the text; 0: there is none."""
        for line in _LINE.finditer(self._text, at):
            if line[4]:
                break
            if (gap := int(line[1], 16) - address) > 0:
                return gap
        return 0


class Table:
    """One reading of the file, every line of it."""

    def __init__(self, text: bytes) -> None:
        found = _LINE.findall(text)
        digits = b"".join(row[0] for row in found).decode("ascii")
        values = struct.unpack(f">{len(found)}Q", bytes.fromhex(digits))
        self.kernel: dict[bytes, Row] = {}
        self.modules: dict[bytes, Row] = {}
        for value, (_, letter, name, module) in zip(values, found, strict=True):
            table = self.modules if module else self.kernel
            known = table.get(name)
            # The first, but a global one before static ones.
            if known is None or (letter.isupper() and not known[1].isupper()):
                table[name] = (value, letter, module)
        self._order = sorted((v, row[2]) for v, row in zip(values, found, strict=True) if not row[3])
        self._addresses = [value for value, _ in self._order]

    def size(self, address: int) -> int:
        """How far the kernel's next symbol is; 0 for the last."""
        index = bisect_right(self._addresses, address)
        return self._addresses[index] - address if index < len(self._addresses) else 0

    def holder(self, address: int) -> bytes | None:
        """The name of the kernel's symbol that lies last before an address."""
        index = bisect_right(self._addresses, address) - 1
        return self._order[index][1] if index >= 0 else None


class LiveKallsyms:
    """The running kernel's :class:`~kvmd.images.linux.symbols.SymbolTable`, read when it is first needed.

    The kernel's own symbols stay as they are. A module's answer comes from a reading of the file that is no older
    than the last change of the list of modules.

    :param modules: tells states of the list of modules apart; raises KvmError if it can't.
    """

    def __init__(self, file: File, modules: Callable[[], object]) -> None:
        self._file = file
        self._modules = modules
        self._known: Text | None = None
        self._state: object = None
        self._read_at = 0.0
        self._sections: Sections | None = None
        self._in_batch = self._looked = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Look at the list of modules at most once for all the names of one request."""
        self._in_batch, self._looked = True, False
        try:
            yield
        finally:
            self._in_batch = False

    def _text(self) -> Text:
        if self._known is None:
            self._known = Text(whole(self._file, _MAX_BYTES))
            self._read_at = time.monotonic()
        return self._known

    def _read_again(self, state: object) -> Table:
        for _ in range(_TRIES):
            self._known = None
            table = self._text().table
            self._state, state = state, self._modules()
            if self._state == state:
                break
        return table

    def __call__(self, name: str) -> Found | None:
        """See :class:`~kvmd.images.linux.symbols.SymbolTable`.

        :raises KvmError: NO_SYMBOLS, SOURCE_IO.
        """
        found = self._text().kernel(name.encode("utf-8", "surrogateescape"))
        return self._found(name, *found) if found else None

    def _address(self, name: str) -> int:
        found = self._text().kernel(name.encode())
        return found[0][0] if found else 0

    def _found(self, name: str, row: Row, size: int) -> Found:
        address, letter, _ = row
        if self._sections is None:
            self._sections = Sections(self._address)
        external = letter.isupper() or letter in b"vw"
        n_type = self._sections.n_type(address, code=letter in b"tT", external=external)
        return Found(name, address, size, n_type, symbol_pb2.SYMBOL_SOURCE_KALLSYMS)

    def module(self, name: str) -> Found | None:
        """See :class:`~kvmd.images.linux.symbols.SymbolTable`; raises as a call does."""
        key = name.encode("utf-8", "surrogateescape")
        table = self._text().table
        if not (self._in_batch and self._looked) and (state := self._modules()) != self._state:
            table = self._read_again(state)
        self._looked = True
        if key not in table.modules and time.monotonic() - self._read_at > _PATIENCE:
            # BPF programs and trampolines are listed, too, and are no modules.
            table = self._read_again(self._modules())
        row = table.modules.get(key)
        if row is None:
            return None
        address, letter, module = row
        n_type = _LETTERS.get(letter.lower(), N_DATA) | (N_EXT if letter.isupper() else 0)
        source = symbol_pb2.SYMBOL_SOURCE_KALLSYMS
        return Found(name, address, 0, n_type, source, module.decode("utf-8", "replace"))

    def at(self, address: int) -> list[Symbol]:
        """See :class:`~kvmd.images.linux.symbols.SymbolTable`."""
        name = self._text().table.holder(address)
        found = self(name.decode("utf-8", "surrogateescape")) if name else None
        if found is None or not KERNEL <= found.value <= address < found.value + max(found.size, 1):
            return []
        return [as_drgn(found)]
