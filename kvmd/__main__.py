"""The command ``kvmd``: see kvmd(8)."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Sequence

from kvmd import late

LATE = (
    *("asyncio.format_helpers", "asyncio.sslproto", "asyncio.staggered", "asyncio.trsock"),
    *("bz2", "copy", "fnmatch", "pkgutil", "queue"),
    *("google.rpc", "grpc_reflection", "grpc_status", "hashlib", "lzma", "ssl"),
    *late.SELDOM,
)
"""What a daemon has no use for before somebody comes by TLS, is refused, opens, or asks which services there are."""


def main(words: Sequence[str] | None = None) -> int:
    """Import what a daemon is made of, and run it; see :func:`kvmd.command.main`."""
    gc.disable()  # of what is imported nothing becomes garbage; until all is, in kvmd.start
    late.start(*LATE)
    _import_asyncio()
    from kvmd.command import main as run  # noqa: PLC0415 - after that

    return run(words)


def _import_asyncio() -> None:
    """Import asyncio as where Python has no ssl: it would look into it, of which only the front has use (front/tls.py).

    OpenSSL is a twentieth of the start, and most daemons serve nobody by TCP.
    """
    if "ssl" not in sys.modules:
        sys.modules["ssl"] = None  # type: ignore[assignment]
        try:
            importlib.import_module("asyncio")
        finally:
            del sys.modules["ssl"]


if __name__ == "__main__":
    sys.exit(main())
