"""/proc/kallsyms: the symbols of the running kernel and of the modules that are loaded just now.

Source: Linux kernel/kallsyms.c (s_show): ``%px %c %s``, and for a module's ``\\t[module]``. The kernel's own are first,
by ascending address. Without CAP_SYSLOG at the open, or with kernel.kptr_restrict=2, every address is zero.
"""

from __future__ import annotations

import re
import struct
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count

from drgn import Symbol

from kvmd.errors import Reason, error
from kvmd.images.base import File
from kvmd.images.linux.live_files import lines
from kvmd.images.linux.symbols import KERNEL, N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT, Found, Sections, as_drgn
from kvmd.v1 import symbol_pb2

_LINE = re.compile(rb"^([0-9a-f]{16}) ([!-~]) ([^\s]+)(?:\t\[([^\s\]]+)\])?$", re.M)
_MAX_BYTES = 256 << 20
_SHOWN = re.compile(rb"^(?!0{16})[0-9a-f]{16} [!-~] [^\s]", re.M)
_AT_ONCE = 256 << 10
_BEYOND = 1 << 64
_TRIES = 3
_FEW = 48  # names that are looked for in the text: from there on to make a table of it is quicker
_PATIENCE = 5.0
# Of modules, whose sections have no bounds: nm(1)'s letters; small ones are local.
_LETTERS = {b"t": N_TEXT, b"w": N_TEXT, b"b": N_BSS, b"a": N_ABS}

Row = tuple[int, bytes, bytes]
"""Address, letter, module (empty: none)."""


class Text:
    """One reading of the file, no further than is needed; the first few names are found without a table of all.

    :param pieces: the file's, each of whole lines.
    :ivar torn: whether reading on has failed, so that the rest will not come.
    :raises KvmError: NO_SYMBOLS if it holds none, or hides their addresses; SOURCE_IO from all that reads on.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._rest, self._sought = iter(pieces), 0
        self._read: list[bytes] = []
        self._ended = self.torn = False
        if not any(_SHOWN.search(piece) for piece in self._pieces()):
            if not any(map(_LINE.search, self._read)):
                raise error(Reason.NO_SYMBOLS, "/proc/kallsyms is empty: no CONFIG_KALLSYMS, or it is hidden")
            message = "/proc/kallsyms hides its addresses: the daemon needs CAP_SYSLOG and kernel.kptr_restrict below 2"
            raise error(Reason.NO_SYMBOLS, message, path="/proc/kallsyms")

    def _pieces(self, first: int = 0) -> Iterator[bytes]:
        """The pieces from one on; those that are needed are read."""
        for at in count(first):
            if at == len(self._read):
                self.torn = True
                piece = next(self._rest, None)
                self.torn = False
                if piece is None:
                    self._ended = True
                    return
                self._read.append(piece)
            yield self._read[at]

    @cached_property
    def table(self) -> Table:
        """All of it."""
        return Table(b"".join(self._pieces()))

    @property
    def known(self) -> int:
        """How much has been read."""
        return len(self._read)

    def kernel(self, name: bytes) -> tuple[Row, int] | None:
        """A symbol of the kernel proper, and how far the next one is: as :class:`Table` has it."""
        self._sought += 1
        if self._sought > _FEW:
            row = self.table.kernel.get(name)
            return (row, self.table.size(row[0])) if row else None
        found = _best(name, self._pieces())
        return (found[0], self._gap(found[0][0], *found[1:])) if found else None

    def bound(self, name: str) -> int:
        """The address of a symbol of the kernel; 0: there is none; :data:`_BEYOND` all others: it is not read yet."""
        found = _best(name.encode(), self._read)
        if found is None and not self._ended:
            return _BEYOND
        if found is not None and not found[0][1].isupper():  # a global one may come
            found = _best(name.encode(), self._pieces())
        return found[0][0] if found else 0

    def _gap(self, address: int, piece: int, at: int) -> int:
        """From an address to the next symbol's, which begins at or after a place in a piece; 0: there is none."""
        for text in self._pieces(piece):
            for line in _LINE.finditer(text, at):
                if line[4]:
                    return 0
                if (gap := int(line[1], 16) - address) > 0:
                    return gap
            at = 0
        return 0


def _best(name: bytes, pieces: Iterable[bytes]) -> tuple[Row, int, int] | None:
    """A symbol of the kernel by its name, and where its line ends: the piece's number, the place in it."""
    first: tuple[Row, int, int] | None = None
    for number, piece in enumerate(pieces):
        for match in _lines(name, piece):
            row = int(match[1], 16), match[2], b""
            if row[1].isupper():  # a global one, which no other can be instead of
                return row, number, match.end()
            first = first or (row, number, match.end())
    return first


def _lines(name: bytes, text: bytes) -> Iterator[re.Match[bytes]]:
    """The lines of the kernel's symbols of a name, in order."""
    sought, at = b" %b\n" % name, 0
    while (at := text.find(sought, at)) >= 0:
        line = _LINE.match(text, text.rfind(b"\n", 0, at) + 1)
        if line and line[3] == name:
            yield line
        at += 1


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
        self._bounded = 0  # so much had been read when they were looked for
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
        if self._known is None or self._known.torn:
            self._known = Text(lines(self._file, _MAX_BYTES, _AT_ONCE))
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

    def _found(self, name: str, row: Row, size: int) -> Found:
        address, letter, _ = row
        text = self._text()
        if self._sections is None or self._bounded != text.known:
            self._sections, self._bounded = Sections(text.bound), text.known
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
