"""``kvmctl read``: kernel memory, as hexdump -C shows it."""

from __future__ import annotations

import argparse

from libkvm.cli.command import Answer, Command, number
from libkvm.cli.hexdump import hexdump
from libkvm.convert import text
from libkvm.errors import Reason, error
from libkvm.kernel import Kernel
from libkvm.printable import printable

_LENGTH = 64
_STRING = 255


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("where", metavar="ADDRESS|SYMBOL[+OFFSET]", help="where to begin")
    parser.add_argument("length", metavar="LENGTH", nargs="?", type=number, help="bytes; default: the symbol's, or 64")
    space = parser.add_mutually_exclusive_group()
    space.add_argument("--physical", action="store_true", help="the address is a physical one")
    space.add_argument("--pid", type=int, help="the address is one of this process's")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="write the bytes as they are")
    form.add_argument("--string", action="store_true", help="read up to a NUL, or LENGTH bytes (255), and show text")


def run(kernel: Kernel, options: argparse.Namespace) -> Answer:
    """Read memory; without --json what is before a fault is shown too."""
    address, size = _where(kernel, options.where, of_kernel=not options.physical and options.pid is None)
    if options.string:
        return _string(kernel, address, options)
    length = options.length if options.length is not None else size or _LENGTH
    space = {"physical": options.physical, "pid": options.pid}
    if options.json:
        data = kernel.read(address, length, **space, timeout=options.timeout)
        return Answer({"address": address, "length": length, "data": data}, ())
    chunks = kernel.stream(address, length, **space, timeout=options.timeout)
    return Answer({}, chunks if options.raw else hexdump(address, chunks))


def _string(kernel: Kernel, address: int, options: argparse.Namespace) -> Answer:
    most = _STRING if options.length is None else options.length
    data = kernel.string(address, most, physical=options.physical, pid=options.pid, timeout=options.timeout)
    return Answer({"address": address, "length": len(data), "string": text(data)}, (printable(text(data)),))


def _where(kernel: Kernel, where: str, *, of_kernel: bool) -> tuple[int, int]:
    """Answer the address that is named, and its symbol's size if known."""
    try:
        return number(where), 0
    except ValueError:
        name, plus, offset = where.partition("+")
    if not of_kernel:
        raise error(Reason.BAD_ARGUMENT, f"{where} is no such address: a number, hexadecimal ones with 0x")
    symbol = kernel.symbol(name)
    if not plus:
        return symbol.value, symbol.size
    try:
        return symbol.value + number(offset), 0
    except ValueError:
        raise error(Reason.BAD_ARGUMENT, f"{where}: the offset is no number") from None


COMMAND = Command("read memory", run, arguments)
