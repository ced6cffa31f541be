"""``kvmctl nlist``: symbols, as nm(1) shows them."""

from __future__ import annotations

import argparse

from libkvm.cli.command import Answer, Command
from libkvm.compat.constants import N_ABS, N_BSS, N_DATA, N_EXT, N_TEXT
from libkvm.errors import no_such_symbol
from libkvm.kernel import Kernel
from libkvm.printable import printable
from libkvm.records import Symbol

_LETTERS = {N_ABS: "a", N_TEXT: "t", N_DATA: "d", N_BSS: "b"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="a symbol")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Look the names up."""
    table = kernel.symbols(options.names)
    found = [symbol for symbol in table.values() if symbol is not None]
    missing = [name for name, symbol in table.items() if symbol is None]
    document = {"symbols": found, "missing": missing}
    return Answer(document, map(_line, found), [no_such_symbol(name) for name in missing])


def _line(symbol: Symbol) -> str:
    letter = _LETTERS.get(symbol.n_type & ~N_EXT, "?")
    module = f" [{printable(symbol.module)}]" if symbol.module else ""
    letter = letter.upper() if symbol.n_type & N_EXT else letter
    return f"{symbol.value:016x} {letter} {printable(symbol.name)}{module}"


COMMAND = Command("look symbols up", run, arguments)
