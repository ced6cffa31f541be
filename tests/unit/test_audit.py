"""The audit record."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from kvmd.access.audit import Audit, tag

WHO = SimpleNamespace(identity="uid:1000", gid=1000, pid=7, exe="/bin/x\n{}")


def test_lines_are_json_and_private(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for image in ("dump:/a", "dump:/b"):
        audit = Audit(str(path))
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
    audit = Audit(f"/proc/self/fd/{write}")
    audit.record("open", WHO, image=name)
    audit.close()
    os.close(write)
    with open(read, "rb") as pipe:
        data = pipe.read()
    assert data.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in data[:-1])
    assert json.loads(data)["image"] == name


def test_tag_does_not_hold_the_id() -> None:
    assert tag("secret-id") == tag("secret-id") != tag("secret-ie")
    assert "secret" not in tag("secret-id")
