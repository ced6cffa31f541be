"""The one place where drgn's exceptions become kvmd's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from drgn import (
    BadDataError,
    FaultError,
    MissingDebugInfoError,
    ObjectAbsentError,
    ObjectNotFoundError,
    OutOfBoundsError,
)

from kvmd.errors import KvmError, Reason, error

# What drgn and its helpers raise for structures that contradict themselves.
_NONSENSE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError),
    *(BadDataError, ObjectAbsentError, OutOfBoundsError),
)


@contextmanager
def guarded(what: str, reason: Reason = Reason.CORRUPT_IMAGE) -> Iterator[None]:
    """Turn what drgn raises into a :class:`KvmError`; errors of kvmd's own code pass.

    :param what: the thing that is read, for the message.
    :param reason: what a failure that says nothing better means: CORRUPT_IMAGE while headers are read,
        CORRUPT_DATA while the kernel's structures are.
    :raises KvmError: the reason, or SHORT_FILE for a read of drgn's own that hit the end of the file.
    """
    try:
        yield
    except (KvmError, MemoryError, AssertionError):
        raise
    except FaultError as e:
        raise error(reason, f"{what} can't be read: {e}", address=e.address) from e
    except (MissingDebugInfoError, ObjectNotFoundError) as e:
        raise error(Reason.NO_TYPES, f"{what} can't be understood: {e}") from e
    except OSError as e:
        raise error(Reason.SOURCE_IO, f"{what} can't be read: {e.strerror}", errno=e.errno or 0) from e
    except _NONSENSE as e:
        missing = type(e) is LookupError  # a type or member that the kernel doesn't have
        raise error(Reason.NO_TYPES if missing else reason, f"{what} can't be made sense of: {e}") from e
    except Exception as e:
        # drgn raises plain Exception for what libkdumpfile and elfutils report.
        if type(e) is Exception:
            raise error(reason, f"{what} can't be made sense of: {e}") from e
        raise
