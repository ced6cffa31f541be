"""A worker process: ``python -m kvmd.worker SOCKET MEMORY CPU HELPERS PARENT [CLIENT|writable]``.

Started by the daemon. HELPERS is how many processes it starts beside itself, for long reads of packed dumps; their
memory is of its own.

CLIENT, for KVM_NO_FILES, is whose rights to take (:meth:`kvmd.worker.sandbox.Identity.decode`); ``writable`` lets it
write at an offset of a file that it is given: /dev/mem, for the running kernel opened with O_RDWR.

Imports everything it will ever need, gives up every privilege, says READY, then receives its files.
"""

from __future__ import annotations

import signal
import socket
import sys

from kvmd.images.base import Files, Image
from kvmd.images.linux.kdumpcodecs import unpack
from kvmd.images.registry import open_image
from kvmd.syscalls import keep_freed_memory
from kvmd.worker import helpers
from kvmd.worker.loop import Loop
from kvmd.worker.protocol import WRITABLE
from kvmd.worker.sandbox import Identity, SandboxLimits, enter
from kvmd.worker.team import Team


def main() -> None:
    """Run on an inherited socket, within so many bytes of memory and seconds of work, as long as the parent lives."""
    fd, memory, cpu, number, parent = map(int, sys.argv[1:6])
    limits = SandboxLimits(memory=memory, cpu=cpu, parent=parent)
    if sys.argv[6:] == [WRITABLE]:
        limits = limits._replace(writable=True)
    elif len(sys.argv) > 6:
        limits = limits._replace(identity=Identity.decode(sys.argv[6]), threads=0)
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
        image = open_image(files._replace(unpacker=team.take))
        if not team.wanted:
            team.close()
        return image

    Loop(sock, opened).run(protections)


if __name__ == "__main__":
    main()
