"""The daemon's log: standard error, which systemd puts in the journal."""

from __future__ import annotations

import contextvars
import json
import logging
import sys

request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)
"""The name of the request that is being handled: in the log, in the audit record, and in the client's error."""


class TextFormatter(logging.Formatter):
    """Lets no text pass for a line of its own: a name in a message could else forge an audit record beside it.

    Further lines, as of a traceback, are indented; control characters are escaped.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines of printable text."""
        lines = super().format(record).splitlines()
        request = request_id.get()
        begin = f"kvmd: [{request}] " if request else "kvmd: "
        return begin + "\n    ".join("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a record."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, object] = {
            "time": record.created,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (request := request_id.get()) is not None:
            line["request"] = request
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


_FORMATTERS = {"text": TextFormatter, "json": JsonFormatter}


def start(level: str = "info", form: str = "text") -> None:
    """Log to standard error from here on.

    :param level: debug, info, warning or error.
    :param form: text or json.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("kvmd").setLevel(level.upper())
