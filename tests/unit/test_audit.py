"""The audit record."""

from __future__ import annotations

import json
import os
import socket
import stat
import struct
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.access.audit import Audit, Reads, tag
from kvmd.access.limits import Quotas
from kvmd.access.sinks import FileSink, JournalSink, LineSink, chosen
from kvmd.config import Limits
from kvmd.front.peer import Certificate
from kvmd.handles.table import Table
from kvmd.images.base import Kind

WHO = SimpleNamespace(
    identity="uid:1000",
    uid=1000,
    gid=1000,
    pid=7,
    exe="/bin/x\n{}",
    start_time=5,
    cgroup="/a.service",
    certificate=None,
)


def test_lines_are_json_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for image in ("dump:/a", "dump:/b"):
        audit = Audit(chosen(str(path), False))
        audit.record("open", WHO, image=image, status="OK")
        audit.close()

    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image"] for line in lines] == ["dump:/a", "dump:/b"]
    assert lines[0]["peer"] == "uid:1000"
    assert lines[0]["exe"] == "/bin/x\n{}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(st.text())
def test_no_name_forges_a_line(name: str) -> None:
    read, write = os.pipe()
    audit = Audit([LineSink(write)])
    audit.record("open", WHO, image=name)
    audit.close()
    with open(read, "rb") as pipe:
        data = pipe.read()
    assert data.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in data[:-1])
    assert json.loads(data)["image"] == name


def test_tag_leaves_the_secret_out() -> None:
    table = Table(Quotas(Limits())["descriptors"])
    nothing = cast("Any", None)
    ids = [table.add("uid:1", nothing, "live", Kind.LIVE, writable=False, entry=nothing).id for _ in range(9)]
    assert len({tag(each) for each in ids}) == len(ids)
    assert all(len(each.removeprefix(tag(each))) * 4 >= 128 for each in ids)


def test_a_peer_from_afar_is_its_certificate(tmp_path: Path) -> None:
    audit = Audit([FileSink(str(tmp_path / "audit"))], request=lambda: "1a2b")
    afar = SimpleNamespace(**{**vars(WHO), "identity": "cert:a", "certificate": Certificate("a", 171, 4e9, "host:1")})
    assert audit.record("open", afar)
    assert audit.record("open", WHO)
    remote, local = (json.loads(line) for line in (tmp_path / "audit").read_text().splitlines())
    assert (remote["cert"], remote["peer"], remote["request"]) == ("a", "cert:a", "1a2b")
    assert not {"uid", "pid", "exe"} & set(remote)
    assert (local["uid"], local["start_time"], local["cgroup"]) == (1000, 5, "/a.service")


def test_a_file_that_was_rotated_is_left(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    audit = Audit([FileSink(str(path))])
    audit.record("one", WHO)
    path.rename(tmp_path / "audit.1")
    audit.record("two", WHO)
    (tmp_path / "other").touch()
    os.replace(tmp_path / "other", path)
    audit.record("three", WHO)
    audit.close()
    assert [json.loads(line)["event"] for line in (tmp_path / "audit.1").read_text().splitlines()] == ["one"]
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["three"]
    assert (audit.written, audit.lost) == (3, 0)


def entry(data: bytes) -> dict[str, str]:
    """Parse a journal entry of the native protocol, of which this knows only fields with a length."""
    fields = {}
    while data:
        name, _, rest = data.partition(b"\n")
        (length,) = struct.unpack_from("<Q", rest)
        fields[name.decode()] = rest[8 : 8 + length].decode()
        assert rest[8 + length : 9 + length] == b"\n"
        data = rest[9 + length :]
    return fields


@given(st.text())
def test_the_journal_gets_a_field_for_each_fact(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(f"{folder}/socket")
        audit = Audit([JournalSink(f"{folder}/socket")])
        assert audit.record("open", WHO, image=name, length=3)
        found = entry(journal.recv(1 << 16))
        audit.close()
    assert json.loads(found["MESSAGE"])["image"] == name
    assert found["KVMD_IMAGE"] == name.encode("utf-8", "backslashreplace").decode()
    facts = (found["KVMD_EVENT"], found["KVMD_PEER"], found["KVMD_UID"], found["KVMD_LENGTH"], found["PRIORITY"])
    assert facts == ("open", "uid:1000", "1000", "3", "5")
    assert found["SYSLOG_IDENTIFIER"] == "kvmd"
    assert all(key.isascii() and key == key.upper() for key in found)


def test_a_full_journal_is_a_lost_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(path)
        audit = Audit([JournalSink(path)])
        while audit.record("open", WHO):
            pass
        assert "Resource temporarily unavailable" in caplog.text
    assert audit.record("open", WHO) is False
    assert audit.lost == 2
    audit.close()


def test_both_sinks_get_it_and_both_must(tmp_path: Path) -> None:
    one = LineSink(os.open("/dev/full", os.O_WRONLY))
    audit = Audit([one, FileSink(str(tmp_path / "audit"))])
    assert audit.record("open", WHO) is False
    assert json.loads((tmp_path / "audit").read_text())["event"] == "open"
    audit.close()


def test_where_it_need_not_be_a_lost_record_stops_nobody() -> None:
    audit = Audit([LineSink(os.open("/dev/full", os.O_WRONLY))], required=False)
    assert audit.record("open", WHO) is True
    assert (audit.written, audit.lost) == (0, 1)
    audit.close()


def test_sinks_of_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(path: str, journal: bool | None) -> list[str]:
        sinks = chosen(path, journal)
        for sink in sinks:
            sink.close()
        return [type(sink).__name__ for sink in sinks]

    path = str(tmp_path / "audit")
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    assert kinds("", None) == ["LineSink"]
    assert kinds(path, None) == ["FileSink"]
    assert kinds(path, True) == ["FileSink", "JournalSink"]
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    assert kinds("", None) == ["JournalSink"]
    assert kinds("", False) == ["LineSink"]


def test_reads_are_added_up() -> None:
    reads = Reads()
    reads.add(100, [(0x2000, 16), (0x1000, 8)])
    reads.add(50, [(0x3000, 16)])
    assert reads.taken() == {"calls": 2, "bytes": 150, "low": "0x1000", "high": "0x3010"}
    assert reads.taken() == {"calls": 0, "bytes": 0}
