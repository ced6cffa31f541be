"""A worker process: ``python -m kvmd.worker SOCKET MEMORY PARENT``, started by the daemon, never by hand.

Imports everything it will ever need, gives up every privilege, says READY, then receives its files.
"""

from __future__ import annotations

import signal
import socket
import sys

from kvmd.images.registry import open_image
from kvmd.worker.loop import Loop
from kvmd.worker.sandbox import SandboxLimits, enter


def main() -> None:
    """Run on an inherited socket, within so many bytes of memory, as long as the parent lives."""
    fd, memory, parent = map(int, sys.argv[1:])
    sock = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C stops the daemon, which stops its workers
    protections = enter(SandboxLimits(memory=memory, parent=parent, keep=(0, 1, 2, fd)))
    Loop(sock, open_image).run(protections)


if __name__ == "__main__":
    main()
