"""kvmctl(1): the command line of libkvm."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from libkvm.cli.command import Answer, Tool, dumps
from libkvm.cli.image import opened
from libkvm.cli.options import parser
from libkvm.errors import KvmError
from libkvm.printable import printable

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run kvmctl.

    :param argv: the arguments without the program's name; None: the process's.
    :return: the exit status: 0, or 1 for a failed operation; wrong usage leaves with 2.
    """
    options = parser().parse_args(argv)
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    # What gRPC says of a failed handshake on standard error, the message says better.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if isinstance(options.command, Tool):
            answer = options.command.run(options)
            _print(answer, options.json)
        else:
            with opened(options) as kernel:
                answer = options.command.run(kernel, options)
                _print(answer, options.json)
        failures = list(answer.failures)
    except KvmError as failure:
        failures = [failure]
    except OSError as failure:
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(failure, BrokenPipeError):
            return 0  # who read the output has seen enough
        where = f"{failure.filename}: " if failure.filename else ""
        print(f"kvmctl: {printable(where)}{failure.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for each in failures:
        print(f"kvmctl: {_told(each)}", file=sys.stderr)
    return 1 if failures else 0


def _told(failure: KvmError) -> str:
    """An error's message; the daemon's log and audit record say more of the request that it names."""
    request = failure.metadata.get("request", "")
    named = f" [request {request}]" if request and request not in failure.message else ""
    return printable(failure.message + named)


def _print(answer: Answer, as_json: bool) -> None:
    out = sys.stdout
    try:
        if as_json:
            print(dumps(answer.document), file=out)
            return
        for line in answer.lines:
            if isinstance(line, bytes):
                out.buffer.write(line)
            else:
                encoding = out.encoding or "utf-8"
                print(line.encode(encoding, "backslashreplace").decode(encoding), file=out)
    finally:
        out.flush()


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave through every ``finally``, so that a private daemon is stopped."""
    raise SystemExit(128 + number)
