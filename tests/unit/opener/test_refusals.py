"""What is refused, and that each refusal has its own reason."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from kvmd.errors import KvmError, Reason, SourceNotFoundError
from kvmd.opener import MAX_NAME

DUMP = b"a dump"


@pytest.mark.parametrize("name", ["..", "../crash/vmcore", "host/..", "host/../vmcore", "/etc/../etc/passwd", "/.."])
def test_dotdot_is_refused_as_text(opener, name, reason):
    assert reason(opener, name) is Reason.PATH_DOTDOT


def test_dots_that_are_a_name_are_not(opener, crash, content):
    (crash / "..x").write_bytes(DUMP)
    assert content(opener.open_dump("..x")) == DUMP


def test_length(opener, crash, content, reason):
    prefix = f"{crash}/"
    fits = prefix + "/" * (MAX_NAME - 1 - len(prefix) - len("vmcore")) + "vmcore"
    assert content(opener.open_dump(fits)) == DUMP
    assert reason(opener, fits.replace("vmcore", "/vmcore")) is Reason.PATH_TOO_LONG
    assert reason(opener, "é" * (MAX_NAME // 2)) is Reason.PATH_TOO_LONG


def test_a_part_too_long_for_the_file_system(way, opener, reason):
    assert reason(opener, "x" * 300) is Reason.PATH_TOO_LONG


@pytest.mark.parametrize("name", ["", "vm\0core", "\0", "/etc/passwd\0", "\ud800"])
def test_what_is_no_name(opener, name, reason):
    assert reason(opener, name) is Reason.BAD_ARGUMENT


def test_outside_is_answered_alike_whatever_is_there(opener, tmp_path):
    answers = set()
    for name in ("secret", "absent", "secret/x", ""):
        with pytest.raises(KvmError) as caught:
            opener.open_dump(f"{tmp_path}/outside/{name}")
        path = caught.value.metadata["path"]
        answers.add((caught.value.reason, caught.value.message.replace(path, "*"), caught.value.errno))
    assert answers == {(Reason.PATH_OUTSIDE, "*: not in a dump directory", errno.EACCES)}


def test_outside_touches_no_file(opener, tmp_path, monkeypatch, reason):
    def touched(*args, **kwargs):
        raise AssertionError(args)

    with monkeypatch.context() as patch:
        for name in ("open", "stat", "lstat", "fstat"):
            patch.setattr(f"kvmd.opener.os.{name}", touched)
        assert reason(opener, f"{tmp_path}/outside/secret") is Reason.PATH_OUTSIDE


def test_a_directory_whose_name_begins_alike_is_outside(opener, crash, reason):
    assert reason(opener, f"{crash}-other/vmcore") is Reason.PATH_OUTSIDE


@pytest.mark.parametrize("target", ["vmcore", "../outside/secret", "/etc/passwd", "absent", "link", "/proc/self/fd/0"])
def test_a_link_is_refused_wherever_it_leads(way, opener, crash, target, reason):
    (crash / "link").symlink_to(target)
    assert reason(opener, "link") is Reason.PATH_SYMLINK


@pytest.mark.parametrize("name", ["link/secret", "link/absent", "host/deep/secret"])
def test_a_link_on_the_way_is_refused_alike(way, opener, crash, tmp_path, name, reason):  # noqa: PLR0917 - fixtures
    (crash / "link").symlink_to(tmp_path / "outside")
    (crash / "host" / "deep").symlink_to("../../outside")
    assert reason(opener, name) is Reason.PATH_SYMLINK


def test_a_fifo_is_refused_without_waiting_and_without_a_trace(way, opener, crash, reason):
    os.mkfifo(crash / "fifo")
    assert reason(opener, "fifo") is Reason.PATH_FIFO
    with pytest.raises(OSError, match="No such device"):  # ENXIO: nobody has it open for reading, nor had
        os.open(crash / "fifo", os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
@pytest.mark.parametrize("kind", [0o020000, 0o060000], ids=["character", "block"])
def test_a_device_is_refused_and_not_opened(way, opener, crash, kind, reason):
    os.mknod(crash / "device", kind | 0o666, os.makedev(240, 77))  # opening it would say ENXIO
    assert reason(opener, "device") is Reason.PATH_DEVICE


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
@pytest.mark.parametrize(
    ("mode", "directory", "owner", "refused"),
    [
        (0o755, 0, 12345, False),
        (0o755, 12345, 12345, False),
        (0o755, 12346, 12345, True),
        (0o775, 0, 12345, True),
        (0o1777, 0, 0, True),
    ],
)
def test_a_hard_link_that_another_may_have_made_is_refused(  # noqa: PLR0917 - fixtures
    way, opener, crash, tmp_path, mode, directory, owner, refused, reason, content
):
    """By whoever can make names in the directory and is neither root nor the file's owner."""
    (tmp_path / "private").write_bytes(DUMP)
    os.chown(tmp_path / "private", owner, owner)
    os.link(tmp_path / "private", crash / "host" / "link")
    os.chown(crash / "host", directory, directory)
    (crash / "host").chmod(mode)
    if refused:
        assert reason(opener, "host/link") is Reason.PATH_HARDLINK
    else:
        assert content(opener.open_dump("host/link")) == DUMP
    (tmp_path / "private").unlink()  # the only name there is: its owner gave it
    assert content(opener.open_dump("host/link")) == DUMP


def test_a_socket_is_refused(way, opener, crash, reason):
    here = os.open(".", os.O_PATH)
    os.chdir(crash)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
    os.fchdir(here)
    os.close(here)
    assert reason(opener, "socket") is Reason.PATH_SOCKET


@pytest.mark.parametrize("name", ["host", "host/", ".", "./", "/"])
def test_a_directory_is_refused(way, opener, crash, name, reason):
    assert reason(opener, name if name != "/" else f"{crash}/") is Reason.PATH_DIRECTORY


@pytest.mark.parametrize("name", ["absent", "absent/vmcore", "vmcore/x"])
def test_not_found(way, opener, name):
    with pytest.raises(SourceNotFoundError) as caught:
        opener.open_dump(name)
    assert caught.value.metadata["errno"] == ("ENOTDIR" if name == "vmcore/x" else "ENOENT")
    assert caught.value.metadata["path"] == name


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
def test_a_file_that_the_daemon_may_not_read(way, opener, crash, reason):
    for path in (crash.parent, crash.parent.parent, crash.parent.parent.parent):
        os.chmod(path, 0o755)
    (crash / "vmcore").chmod(0)
    os.seteuid(12345)
    try:
        assert reason(opener, "vmcore") is Reason.SOURCE_ACCESS
    finally:
        os.seteuid(0)
