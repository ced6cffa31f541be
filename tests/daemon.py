"""Starts a real daemon for tests."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

READY = 30.0
STOP = 30.0
_SETPRIV = ("setpriv", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


@dataclass
class Daemon:
    """A running daemon.

    :ivar target: where it listens.
    :ivar log: what it has written to stderr so far, ready line included.
    """

    target: str
    process: subprocess.Popen[bytes]
    log: list[bytes] = field(default_factory=list)

    def stop(self) -> int:
        """Stop it as systemd does; answers its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP)


@contextlib.contextmanager
def running_daemon(
    dump_dirs: Sequence[str | os.PathLike[str]] = (),
    config: str | None = None,
    path: str | None = None,
    *,
    user: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """Run ``python -m kvmd`` on a socket of its own; at the end it must stop with status 0.

    :param dump_dirs: served with ``--dump-dir``.
    :param config: the text of a configuration file; None: an empty one.
    :param path: the socket; None: one in a new directory that every user may enter.
    :param user: whose daemon it is, with the capability that systemd/kvmd.service gives it to read dumps; needs root.
    :param env: variables of its environment besides this process's.
    """
    with tempfile.TemporaryDirectory(prefix="kvmd-test-") as folder:
        Path(folder).chmod(0o755)
        target = f"unix:{path or os.path.join(folder, 'kvmd.sock')}"
        settings = Path(folder, "kvmd.toml")
        settings.write_text(config or "")
        command = [sys.executable, "-m", "kvmd", "--listen", target, "--config", str(settings)]
        for directory in dump_dirs:
            command += ["--dump-dir", os.path.realpath(directory)]
        if user is not None:
            os.chown(folder, user, user)
            command = [*_SETPRIV, f"--reuid={user}", f"--regid={user}", *command]
        environ = {**os.environ, **(env or {})}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ)
        daemon = Daemon(target, process)
        reader = None
        try:
            _await_ready(daemon)
            reader = threading.Thread(target=_drain, args=(daemon,))
            reader.start()
            yield daemon
            status = daemon.stop()
            assert status == 0, f"kvmd ended with {status}: {_said(daemon)}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if reader is not None:
                reader.join(STOP)
            process.stderr.close()


def _await_ready(daemon: Daemon) -> None:
    """Read stderr, byte by byte so that nothing after it is lost, up to the ready line."""
    end, line, stderr = time.monotonic() + READY, b"", daemon.process.stderr.fileno()
    while select.select([stderr], [], [], max(0.0, end - time.monotonic()))[0]:
        byte = os.read(stderr, 1)
        line += byte
        if not byte:
            daemon.log.append(line)
            raise AssertionError(f"kvmd did not start: {_said(daemon)}")
        if byte == b"\n":
            daemon.log.append(line)
            if b"ready on unix:" in line:
                return
            line = b""
    raise AssertionError(f"kvmd was not ready after {READY} s: {_said(daemon)}")


def _drain(daemon: Daemon) -> None:
    for line in daemon.process.stderr:
        daemon.log.append(line)


def _said(daemon: Daemon) -> str:
    return b"".join(daemon.log).decode("utf-8", "replace")
