"""The daemon's log: standard error, which systemd puts in the journal."""

from __future__ import annotations

import logging
import sys


class Formatter(logging.Formatter):
    """Lets no text pass for a line of its own: a name in a message could else forge an audit record beside it.

    Further lines, as of a traceback, are indented; control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines of printable text."""
        lines = super().format(record).splitlines()
        return "\n    ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


def start() -> None:
    """Log to standard error from here on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("kvmd: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
