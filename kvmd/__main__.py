"""The command ``kvmd``: see kvmd(8)."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence

from kvmd import late


def main(words: Sequence[str] | None = None) -> int:
    """Import what a daemon is made of, and run it; see :func:`kvmd.command.main`."""
    gc.disable()  # of what is imported nothing becomes garbage; until all is, in kvmd.start
    late.start(*late.SELDOM)
    from kvmd.command import main as run  # noqa: PLC0415 - after that

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
