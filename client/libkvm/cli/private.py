"""A daemon of one's own, for the time of one call: where none runs and the dump is one's own to read."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from libkvm.errors import KvmError, Reason, error

_START = 30.0  # seconds until it must be ready,
_STOP = 10.0  # and to stop
_PLACE = 48  # bytes of the name of the folder for temporary files
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def answers(target: str) -> bool:
    """Tell whether something listens on a target of the form ``unix:/path`` and lets this user in."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(target.removeprefix("unix:")) == 0


@contextlib.contextmanager
def private_daemon(files: Sequence[str]) -> Iterator[str]:
    """Run a daemon that serves the directories of these files; it stops at the end, come what may.

    :param files: absolute names.
    :return: its target.
    :raises UnsupportedError: the daemon is not installed.
    :raises UnavailableError: it does not start.
    """
    if importlib.util.find_spec("kvmd.__main__") is None or importlib.util.find_spec("drgn") is None:
        raise error(Reason.UNSUPPORTED, "opening a dump without a running kvmd needs: pip install 'libkvm[daemon]'")
    # A socket's name ends at 107 bytes, and kvmd makes another one beside it.
    place = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) <= _PLACE else "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="kvmctl-", dir=place) as folder:  # mode 0700
        target = f"unix:{folder}/kvmd.sock"
        # -P: a folder named kvmd where the user stands must not be run in its place.
        command = [sys.executable, "-P", "-m", "kvmd", "--listen", target]
        command += ["--config", os.devnull]  # the system's configuration is not for a user's own daemon
        for directory in sorted({os.path.dirname(name) for name in files}):
            command += ["--dump-dir", directory]
        with _running(command):
            yield target


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[None]:
    # Its own process group: a terminal's Ctrl-C is for kvmctl, which then stops it.
    daemon = subprocess.Popen(  # noqa: S603 - a command of ours
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        process_group=0,
        preexec_fn=_die_with_parent(),  # noqa: PLW1509 - no thread was started yet
    )
    try:
        assert daemon.stderr is not None  # noqa: S101 - PIPE above
        _await_ready(daemon.stderr)
        threading.Thread(target=daemon.stderr.read, daemon=True).start()
        yield
    finally:
        _stop(daemon)


def _die_with_parent() -> Callable[[], object]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def _await_ready(stderr: IO[bytes]) -> None:
    """Wait for the line that kvmd prints when it is ready; what it prints instead is why it is not."""
    end, said = time.monotonic() + _START, b""
    while select.select([stderr], [], [], max(0.0, end - time.monotonic()))[0]:
        chunk = os.read(stderr.fileno(), 4096)
        said += chunk
        if any(line.startswith(b"kvmd: ready") for line in said.splitlines(keepends=True) if line.endswith(b"\n")):
            return
        if not chunk:
            raise _not_started(said.decode("utf-8", "replace").strip() or "it printed nothing")
    raise _not_started(f"not ready after {_START:.0f} s")


def _not_started(why: str) -> KvmError:
    return error(Reason.UNREACHABLE, f"the private kvmd did not start: {why}")


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(_STOP)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    if daemon.stderr is not None:
        daemon.stderr.close()
