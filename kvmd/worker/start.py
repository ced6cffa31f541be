"""A worker process from its arguments on: gives up every privilege, says READY, then receives its files.

All that it will ever need is imported with this module, or kept in memory before it gives up its files.
"""

from __future__ import annotations

import gc
import importlib
import signal
import socket
from collections.abc import Iterator, Sequence

from kvmd import late
from kvmd.images import registry
from kvmd.images.base import Files, Image
from kvmd.images.linux.kdumpcodecs import unpack
from kvmd.syscalls import keep_freed_memory
from kvmd.worker import helpers
from kvmd.worker.loop import Loop
from kvmd.worker.protocol import WRITABLE
from kvmd.worker.sandbox import Identity, SandboxLimits, enter
from kvmd.worker.team import Team

_NEEDED = ("_bisect", "_drgn_util.plugins", "_json", "lz4.block", "lzma", "zlib")
"""What modules that run late import, and drgn itself, when no file can be read any more or shared object be loaded."""


def prepare() -> None:
    """Import what has to be imported while there are files, and keep the code of what runs late in memory."""
    for name in _NEEDED:
        importlib.import_module(name)
    late.hold()


def run(words: Sequence[str]) -> None:
    """Run on an inherited socket, within so many bytes of memory and seconds of work, as long as the parent lives.

    :param words: as :mod:`kvmd.worker.__main__` has them.
    """
    prepare()
    gc.freeze()  # what was imported stays
    gc.enable()
    fd, memory, cpu, number, parent = map(int, words[:5])
    limits = SandboxLimits(memory=memory, cpu=cpu, parent=parent)
    if words[5:] == [WRITABLE]:
        limits = limits._replace(writable=True)
    elif len(words) > 5:
        limits = limits._replace(identity=Identity.decode(words[5]), threads=0)
    sock = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C stops the daemon, which stops its workers
    keep_freed_memory()
    seats = helpers.seats(min(number, memory // helpers.MEMORY // 2))
    theirs = limits._replace(memory=helpers.MEMORY)
    keep = (0, 1, 2, fd, *(each.fileno() for seat in seats for each in (seat.helper, seat.link)))
    limits = limits._replace(memory=memory - len(seats) * helpers.MEMORY, keep=keep)
    protections = enter(limits, lambda: helpers.start(seats, theirs, unpack))
    team = Team(unpack, [seat.helper for seat in seats])

    def opened(files: Files) -> Image:
        image = registry.open_image(files._replace(unpacker=team.take))
        if not team.wanted:
            team.close()
        return image

    Loop(sock, opened).run(protections, _ahead())


def _ahead() -> Iterator[None]:
    """What a worker that waits can do ahead of the first open, a step at a time."""
    yield from late.rest("kvmd.images")
    gc.freeze()
