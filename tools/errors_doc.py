"""Renders docs/errors.md from the table of reasons; --check fails if what is committed differs."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

from kvmd.errors import TABLE

DOC = Path(__file__).resolve().parent.parent / "docs" / "errors.md"
HEAD = """# Reasons

Every failure has one reason. It is `ErrorInfo.reason` (domain `kvmd`) of a call's status, `.reason` of the exception
that `libkvm` raises, and decides the errno and the text of libkvm's C-style calls; `{hex}` is the address, `{strerror}`
the errno's text, `-` the message itself. Rendered by `tools/errors_doc.py` from the table in `kvmd/errors.py`.

| reason | exception | gRPC status | errno | libkvm's text | meaning |
|---|---|---|---|---|---|
"""


def render() -> str:
    """The whole document."""
    rows = [
        f"| {reason.value} | {row.kind.__name__} | {row.status} | {errno.errorcode[row.errno]} "
        f"| {'-' if row.text is None else f'`{row.text}`'} | {row.meaning} |\n"
        for reason, row in TABLE.items()
    ]
    return HEAD + "".join(rows)


def main() -> int:
    """Write or check."""
    if "--check" not in sys.argv:
        DOC.write_text(render(), encoding="utf-8")
    elif DOC.read_text(encoding="utf-8") != render():
        print("docs/errors.md differs: run tools/errors_doc.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
