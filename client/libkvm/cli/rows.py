"""Tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Render rows of as many cells each, right-aligned but for the last."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    for *cells, last in rows:
        yield " ".join([*(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), last])
