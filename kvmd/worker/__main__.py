"""A worker process: ``python -m kvmd.worker SOCKET MEMORY CPU PARENT [CLIENT|writable]``, started by the daemon.

CLIENT, for KVM_NO_FILES, is whose rights to take (:meth:`kvmd.worker.sandbox.Identity.decode`); ``writable`` lets it
write at an offset of a file that it is given: /dev/mem, for the running kernel opened with O_RDWR.

Imports everything it will ever need, gives up every privilege, says READY, then receives its files.
"""

from __future__ import annotations

import signal
import socket
import sys
from dataclasses import replace

from kvmd.images.registry import open_image
from kvmd.syscalls import keep_freed_memory
from kvmd.worker.loop import Loop
from kvmd.worker.protocol import WRITABLE
from kvmd.worker.sandbox import Identity, SandboxLimits, enter


def main() -> None:
    """Run on an inherited socket, within so many bytes of memory and seconds of work, as long as the parent lives."""
    fd, memory, cpu, parent = map(int, sys.argv[1:5])
    limits = SandboxLimits(memory=memory, cpu=cpu, parent=parent, keep=(0, 1, 2, fd))
    if sys.argv[5:] == [WRITABLE]:
        limits = replace(limits, writable=True)
    elif len(sys.argv) > 5:
        limits = replace(limits, identity=Identity.decode(sys.argv[5]), threads=0)
    sock = socket.socket(fileno=fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's ^C stops the daemon, which stops its workers
    keep_freed_memory()
    protections = enter(limits)
    Loop(sock, open_image).run(protections)


if __name__ == "__main__":
    main()
