"""The log's lines, beside which audit records may stand."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from kvmd.log import TextFormatter

FORMATTER = TextFormatter()


def line(message: str, *arguments: object) -> str:
    return FORMATTER.format(logging.LogRecord("x", logging.INFO, "x.py", 1, message, arguments, None))


@given(st.text())
def test_no_text_begins_a_line_of_its_own(text: str) -> None:
    first, *more = line("%s", text).split("\n")
    assert first.startswith("kvmd: ")
    assert all(each.startswith("    ") for each in more)
    assert all(each.isprintable() for each in (first, *more))


def test_traceback_can_not_forge_an_audit_record() -> None:
    try:
        raise ValueError('x\naudit: {"event": "open"}\r\x1b[2K')
    except ValueError as failure:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "incident", (), (ValueError, failure, None))
    text = FORMATTER.format(record)
    assert '\n    audit: {"event": "open"}' in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_plain_text_stays_as_it_is() -> None:
    assert line("ready on unix:%s", "/run/é") == "kvmd: ready on unix:/run/é"
