"""The exceptions that libkvm raises: the shared table of reasons, and what only a client needs.

::

    KvmError
     +- RequestError                 the request itself is wrong
     +- AccessError                  the caller may not do this
     +- SourceError                  a named file can't be opened
     |   +- SourceNotFoundError      there is no such file
     +- FormatError                  a file is not what it should be
     +- UnsupportedError             this image has no such thing
     +- FaultError                   memory could not be read
     +- SymbolNotFoundError          no such symbol (also a LookupError)
     +- ProcessError                 a process is not there, or has no such memory
     +- DescriptorError              the descriptor is unknown or closed
     +- LimitError                   a limit of the daemon's is reached
     +- UnavailableError             the daemon or the image's worker is gone or too slow
     +- DeadlineError                the deadline passed
     +- CancelledError               the call was withdrawn
     +- InternalError                a fault of kvmd's own

Every one carries ``.reason`` (a :class:`Reason`), ``.message``, ``.metadata``, ``.address`` and ``.partial``.
"""

from __future__ import annotations

from kvmd.errors import (
    AccessError,
    CancelledError,
    DeadlineError,
    DescriptorError,
    FaultError,
    FormatError,
    InternalError,
    KvmError,
    LimitError,
    ProcessError,
    Reason,
    RequestError,
    SourceError,
    SourceNotFoundError,
    SymbolNotFoundError,
    UnavailableError,
    UnsupportedError,
    error,
    from_wire,
)

__all__ = [
    "AccessError",
    "CancelledError",
    "DeadlineError",
    "DescriptorError",
    "FaultError",
    "FormatError",
    "InternalError",
    "KvmError",
    "LimitError",
    "ProcessError",
    "Reason",
    "RequestError",
    "SourceError",
    "SourceNotFoundError",
    "SymbolNotFoundError",
    "UnavailableError",
    "UnsupportedError",
    "daemon_ended",
    "error",
    "from_wire",
    "no_such_symbol",
]


def daemon_ended(target: str) -> KvmError:
    """Build the error for what a daemon had opened that has ended: another one on that target knows nothing of it."""
    return error(Reason.UNREACHABLE, f"the kvmd on {target} has ended; open the image again", target=target)


def no_such_symbol(name: str) -> KvmError:
    """Build the error for a name, in the words of kvm_getprocs(3)'s ``%s: no such symbol``."""
    return error(Reason.NO_SUCH_SYMBOL, f"{name}: no such symbol", symbol=name)
