"""What names mean, and which directories they may lie in."""

from __future__ import annotations

import os

import pytest

from kvmd.errors import Reason
from kvmd.opener import Opener

DUMP = b"a dump"
SECRET = b"a secret"


def test_absolute_and_relative_names(way, opener, crash, content):
    for name, path, data in [
        (str(crash / "vmcore"), crash / "vmcore", DUMP),
        ("vmcore", crash / "vmcore", DUMP),
        ("./host//vmcore", crash / "host/vmcore", DUMP + b" of host"),
        (f"/{crash}/./host/vmcore", crash / "host/vmcore", DUMP + b" of host"),
    ]:
        opened = opener.open_dump(name)
        assert opened.path == str(path)
        assert opener.dump_candidates(name) == (str(path),)
        assert opened.stat.st_size == len(data)
        assert content(opened) == data


def test_the_descriptor_is_for_reading_alone_and_not_inherited(way, opener):
    with opener.open_dump("vmcore") as opened:
        assert not os.get_inheritable(opened.fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(opened.fd, b"x")


def test_relative_names_are_looked_up_in_order(way, tmp_path, content, reason):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "both").write_bytes(name.encode())
    (tmp_path / "b" / "one").write_bytes(b"b")
    opener = Opener([str(tmp_path / "none"), str(tmp_path / "a"), str(tmp_path / "b")])
    assert content(opener.open_dump("both")) == b"a"
    assert content(opener.open_dump("one")) == b"b"
    assert opener.dump_candidates("one") == tuple(str(tmp_path / d / "one") for d in ("none", "a", "b"))
    assert reason(opener, "neither") is Reason.SOURCE_NOT_FOUND


def test_a_refusal_in_an_earlier_directory_hides_a_later_one(way, tmp_path, reason):
    """A name that means a link in the first directory doesn't silently mean another file in the second."""
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "vmcore").symlink_to("/etc/passwd")
    (tmp_path / "b" / "vmcore").write_bytes(DUMP)
    assert reason(Opener([str(tmp_path / "a"), str(tmp_path / "b")]), "vmcore") is Reason.PATH_SYMLINK


def test_kernels_have_directories_of_their_own(way, tmp_path, crash, content, reason):
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "vmlinux").write_bytes(b"ELF")
    opener = Opener([str(crash)], [str(tmp_path / "debug")])
    assert content(opener.open_exec("vmlinux")) == b"ELF"
    assert content(opener.open_exec("vmcore")) == DUMP
    assert reason(opener, "vmlinux") is Reason.SOURCE_NOT_FOUND
    assert reason(opener, tmp_path / "debug/vmlinux") is Reason.PATH_OUTSIDE


def test_an_empty_dump_is_refused_and_an_empty_kernel_is_not(way, opener, crash, content, reason):
    (crash / "empty").touch()
    assert reason(opener, "empty") is Reason.EMPTY_FILE
    assert content(opener.open_exec("empty")) == b""


def test_a_directory_may_be_reached_through_links_in_both_spellings(way, tmp_path, crash):
    (tmp_path / "var").symlink_to(".")
    opener = Opener([f"{tmp_path}/var/crash"])
    for name in (f"{tmp_path}/var/crash/vmcore", f"{crash}/vmcore", "vmcore"):
        assert opener.dump_candidates(name) == (f"{crash}/vmcore",)
        with opener.open_dump(name) as opened:
            assert opened.path == f"{crash}/vmcore"


def test_a_directory_turned_into_a_link_later_is_not_followed(way, opener, crash, tmp_path, reason):
    crash.rename(tmp_path / "moved")
    crash.symlink_to("outside")
    for name in ("secret", crash / "secret"):
        assert reason(opener, name) in (Reason.SOURCE_NOT_FOUND, Reason.PATH_SYMLINK)


def test_a_parent_of_a_directory_turned_into_a_link_later_is_not_followed(way, tmp_path, reason):
    (tmp_path / "p" / "crash").mkdir(parents=True)
    opener = Opener([f"{tmp_path}/p/crash"])
    (tmp_path / "p").rename(tmp_path / "q")
    (tmp_path / "q" / "crash" / "vmcore").write_bytes(SECRET)
    (tmp_path / "p").symlink_to("q")
    assert reason(opener, "vmcore") is Reason.PATH_SYMLINK


def test_a_directory_made_later_is_found(way, tmp_path, content, reason):
    opener = Opener([f"{tmp_path}/late"])
    assert reason(opener, "vmcore") is Reason.SOURCE_NOT_FOUND
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "vmcore").write_bytes(DUMP)
    assert content(opener.open_dump("vmcore")) == DUMP


def test_a_directory_must_be_absolute():
    with pytest.raises(ValueError, match="absolute"):
        Opener(["crash"])


def test_no_directories(reason):
    assert reason(Opener([]), "vmcore") is Reason.PATH_OUTSIDE
    assert reason(Opener([]), "/vmcore") is Reason.PATH_OUTSIDE


def test_the_root_as_a_directory(way, crash, content):
    assert content(Opener(["/"]).open_dump(f"{crash}/vmcore")) == DUMP
