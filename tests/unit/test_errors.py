"""The table of reasons, walked from end to end."""

from __future__ import annotations

import errno
import pickle
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from kvmd.errors import TABLE, InternalError, KvmError, Reason, error, from_wire
from kvmd.rpc.status import to_status

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.value)
def test_every_reason_survives_the_wire(reason: Reason) -> None:
    """Exception, status, ErrorInfo, and the same exception again."""
    before = error(reason, "what happened", address=0xFFFF_8000_0000_1000, path="/a")

    status = to_status(before)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    after = from_wire(info.reason, status.message, dict(info.metadata))

    row = TABLE[reason]
    assert type(after) is type(before) is row.kind
    assert issubclass(row.kind, KvmError)
    assert status.code == getattr(grpc.StatusCode, row.status).value[0] != 0
    assert (info.domain, info.reason) == ("kvmd", reason.value)
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", reason.value)
    assert after.reason is reason
    assert after.address == 0xFFFF_8000_0000_1000
    assert after.errno == row.errno
    assert row.errno in errno.errorcode
    assert after.message == str(after) == "what happened"
    assert after.text
    assert "{" not in after.text
    assert len(row.meaning) > 10


def test_libkvm_texts() -> None:
    """The texts that callers of libkvm know, to the letter."""
    assert error(Reason.BAD_FLAGS, "flags 0x1").text == "bad flags arg"
    assert error(Reason.PATH_TOO_LONG, "long").text == "exec file name too long"
    assert error(Reason.NOT_MAPPED, "x", address=0xDEAD000).text == "_kvm_kvatop(dead000)"
    assert error(Reason.EMPTY_FILE, "x").text == "empty file: Invalid argument"
    assert error(Reason.SOURCE_NOT_FOUND, "x", path="/nonexistent").text == "/nonexistent: No such file or directory"
    assert error(Reason.SOURCE_IO, "x", path="/d", errno="EMFILE").text == "/d: Too many open files"
    assert error(Reason.EXEC_NOT_ELF, "x").text == "kernel is not an ELF file"


def test_text_with_hostile_metadata() -> None:
    """Braces in a name are not a template; a missing key falls back to the message."""
    assert error(Reason.SOURCE_NOT_FOUND, "m", path="{errno.__class__}").text.startswith("{errno.__class__}: ")
    assert error(Reason.SOURCE_NOT_FOUND, "m", errno="__class__").errno == errno.ENOENT


def test_reason_of_a_newer_daemon() -> None:
    """An unknown reason is still a KvmError, and its word is kept."""
    failure = from_wire("NOT_INVENTED_YET", "text", {})
    assert isinstance(failure, KvmError)
    assert not isinstance(failure, InternalError)
    assert failure.metadata["reason"] == "NOT_INVENTED_YET"


def test_pickle() -> None:
    """Errors cross process boundaries of their users."""
    before = error(Reason.EXCLUDED, "gone", address=16)
    after = pickle.loads(pickle.dumps(before))
    assert (type(after), after.reason, after.message, after.address) == (type(before), Reason.EXCLUDED, "gone", 16)


def test_status_stays_below_the_size_of_headers() -> None:
    """A long message is cut, not lost."""
    status = to_status(error(Reason.SOURCE_IO, "é" * 100_000, path="x" * 100_000))
    assert status.ByteSize() < 4096


def test_document_is_rendered_from_the_table() -> None:
    """docs/errors.md and the table are one."""
    subprocess.run([sys.executable, ROOT / "tools" / "errors_doc.py", "--check"], check=True)
