"""Opens the image that the command line names."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from libkvm.cli.command import certificates
from libkvm.cli.private import answers, private_daemon
from libkvm.client import connect
from libkvm.errors import Reason, error
from libkvm.kernel import Kernel
from libkvm.session import DEFAULT_TARGET, LONG_TIMEOUT, TIMEOUT

_CLEAR = "\r\x1b[K"


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[Kernel]:
    """Open the image of ``-M``, ``-N`` and ``-W``, or none at all, through a private daemon if need be."""
    core, exe, swap = options.core, options.exec, [name for name in (options.swap or "").split(":") if name]
    target = options.target or os.environ.get("KVMD_TARGET") or None
    timeout, long_timeout = options.timeout or TIMEOUT, options.timeout or LONG_TIMEOUT
    with contextlib.ExitStack() as stack:
        if target is None and options.no_files and not answers(DEFAULT_TARGET):
            target = stack.enter_context(private_daemon([]))
        elif target is None and core is not None and not answers(DEFAULT_TARGET):
            # kvmd opens no symbolic links, which a user may well have in the name of a file of theirs.
            core, *others = (_own(name) for name in (core, *([exe] if exe else []), *swap))
            exe, swap = (others[0], others[1:]) if exe else (None, others)
            target = stack.enter_context(private_daemon([core, *others]))
        made = connect(target, timeout=timeout, long_timeout=long_timeout, **certificates(options))
        client = stack.enter_context(made)
        with _shown() as progress:
            how = {"no_files": options.no_files, "any_swap": options.any_swap, "timeout": options.timeout}
            kernel = client.open(core, exe, swap, **how, progress=progress if sys.stderr.isatty() else None)
        yield stack.enter_context(kernel)


@contextlib.contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """Give what shows how far an open has come, on a terminal, for as long as it takes."""
    shown = False

    def show(done: int, total: int) -> None:
        nonlocal shown
        if total:
            shown = True
            text = f"looking for the kernel: {100 * done // total} % of {total >> 20} MiB"
            sys.stderr.write(f"{_CLEAR}{text}")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()


def _own(name: str) -> str:
    """Answer the absolute name of a file that this user may read."""
    path = os.path.realpath(name)
    why = f"and no kvmd answers on {DEFAULT_TARGET}"
    if not os.path.exists(path):
        raise error(Reason.SOURCE_NOT_FOUND, f"{name}: No such file or directory, {why}", path=name)
    if not os.path.isfile(path):
        raise error(Reason.SOURCE_ACCESS, f"{name}: not a regular file, {why}", path=name)
    if not os.access(path, os.R_OK):
        raise error(Reason.SOURCE_ACCESS, f"{name}: Permission denied, {why}", path=name)
    return path
