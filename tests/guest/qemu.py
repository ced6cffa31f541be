"""A QEMU process: starts it, talks QMP and gdb's protocol to it, and always ends it.

Sources: QEMU's docs/interop/qmp-spec.rst; GDB's manual, "Remote Protocol" (packets ``M`` and ``D``).
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

START = 20.0


def connect(path: Path, process: subprocess.Popen[bytes]) -> socket.socket:
    """Connect to a socket that QEMU makes when it starts."""
    deadline = time.monotonic() + START
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return sock


class Qemu:
    """A machine that runs as long as the ``with`` block; ``work`` takes its sockets and logs."""

    def __init__(self, command: Sequence[str], work: Path) -> None:
        self._work = work
        self._log = (work / "qemu.log").open("wb")
        sockets = [
            "-qmp",
            f"unix:{work}/qmp.sock,server=on,wait=off",
            "-gdb",
            f"unix:{work}/gdb.sock,server=on,wait=off",
        ]
        words = [*command, *sockets]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def __enter__(self) -> Self:
        self._sock = connect(self._work / "qmp.sock", self.process)
        self._sock.settimeout(300)
        self._file = self._sock.makefile("rwb")
        self._file.readline()  # the greeting
        self.command("qmp_capabilities")
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            self._file.close()
        self._sock.close()
        self._log.close()

    def command(self, name: str, **arguments: object) -> Any:
        """Run a QMP command and return its answer."""
        self._file.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self._file.flush()
        while True:
            line = self._file.readline()
            if not line:
                raise EOFError("QEMU closed its monitor")
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]

    def poke(self, address: int, data: bytes) -> None:
        """Write to the guest's virtual memory while it stands still."""
        body = b"M%x,%x:%s" % (address, len(data), data.hex().encode())
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(20)
            sock.connect(str(self._work / "gdb.sock"))  # which stops the guest, and may say so
            sock.sendall(b"$" + body + b"#%02x" % (sum(body) & 255))
            got, answer = b"", b""
            while not answer:
                got += sock.recv(4096)
                answers = re.findall(rb"\$([^#]*)#..", got)
                answer = next((text for text in answers if text[:1] in (b"O", b"E")), b"")
            sock.sendall(b"+$D#44")  # detach: the guest goes on
            sock.recv(100)
        if answer != b"OK":
            raise RuntimeError(f"gdb's stub said {answer!r}")
        if self.command("query-status")["status"] != "running":
            self.command("cont")
