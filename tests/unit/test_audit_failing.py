"""An audit sink that takes no more."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvmd.access.audit import Audit
from kvmd.access.sinks import FileSink, LineSink
from kvmd.front.peer import Certificate

WHO = SimpleNamespace(identity="cert:x", certificate=Certificate("x", 1, 4e9, "host:1"))


def test_a_full_disk_is_an_answer_and_no_exception(caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit([LineSink(os.open("/dev/full", os.O_WRONLY))])
    assert audit.record("open", WHO) is False
    audit.close()
    assert "an audit record is lost: No space left on device" in caplog.text


def test_what_a_full_disk_cut_off_costs_no_other_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 20
    write = os.write

    def short(fd: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(fd, data[:room])
        room -= count
        return count

    audit = Audit([FileSink(str(tmp_path / "audit"))])
    monkeypatch.setattr("kvmd.access.sinks.os.write", short)
    assert audit.record("open", WHO, image="first") is False
    assert audit.record("open", WHO, image="second") is False
    room = 1 << 20
    assert audit.record("open", WHO, image="third") is True
    assert audit.record("open", WHO, image="fourth") is True
    audit.close()
    torn, *whole = (tmp_path / "audit").read_text().splitlines()
    assert torn.startswith('{"time"')
    assert [json.loads(line)["image"] for line in whole] == ["third", "fourth"]


def test_a_record_after_the_end_goes_nowhere(tmp_path: Path) -> None:
    """The number of a closed descriptor may be another file's by then."""
    audit = Audit([FileSink(str(tmp_path / "audit"))])
    audit.close()
    with (tmp_path / "other").open("wb"):
        assert audit.record("close", WHO) is False
    assert (tmp_path / "other").read_bytes() == b""
