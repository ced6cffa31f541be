"""Where indexes are kept: a directory of the daemon's alone, in which nothing that others made, or damage, is used."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.handles import indexes as module
from kvmd.handles.indexes import MOST, Indexes, Kept, UnfitError

ONE, TWO, THREE = "a1" * 20, "b2" * 20, "c3" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def indexes(folder: Path) -> Iterator[Indexes]:
    made = Indexes(str(folder), 1 << 20)
    yield made
    made.close()


def content(kept: Kept | None) -> bytes | None:
    if kept is None:
        return None
    with kept:
        return os.pread(kept.fd, 1 << 20, 0)


def test_what_is_kept_is_found_by_the_next_daemon(indexes: Indexes, folder: Path) -> None:
    assert indexes.find(ONE) is None
    indexes.keep(ONE, b"an index")
    indexes.keep(TWO, b"another")
    later = Indexes(str(folder), 1 << 20)
    assert (content(later.find(ONE)), content(later.find(TWO)), later.find(THREE)) == (b"an index", b"another", None)
    indexes.keep(ONE, b"a newer one")
    assert content(later.find(ONE)) == b"a newer one"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in folder.iterdir()} == {0o600}
    assert sorted(each.name for each in folder.iterdir()) == [ONE, TWO]


def test_nobody_can_change_what_was_given_out(indexes: Indexes) -> None:
    indexes.keep(ONE, b"x" * 5000)
    with indexes.find(ONE) or pytest.fail("it is there") as kept:
        with pytest.raises(PermissionError):
            os.write(kept.fd, b"y")
        with pytest.raises(PermissionError):
            os.ftruncate(kept.fd, 0)
        with pytest.raises(PermissionError):
            mmap.mmap(kept.fd, 5000)
        with pytest.raises(PermissionError):
            fcntl.fcntl(kept.fd, fcntl.F_ADD_SEALS, 0)
        assert mmap.mmap(kept.fd, 0, prot=mmap.PROT_READ)[:] == b"x" * 5000


@pytest.mark.parametrize("at", [0, 31, 32, 4000, -1])
def test_what_is_damaged_is_removed(indexes: Indexes, folder: Path, at: int) -> None:
    indexes.keep(ONE, bytes(5000))
    data = bytearray((folder / ONE).read_bytes())
    data[at] ^= 1
    (folder / ONE).write_bytes(data)
    assert indexes.find(ONE) is None
    assert not (folder / ONE).exists()


@pytest.mark.parametrize("length", [0, 31, 32, 33, 4000])
def test_what_is_cut_is_removed(indexes: Indexes, folder: Path, length: int) -> None:
    indexes.keep(ONE, bytes(5000))
    os.truncate(folder / ONE, length)
    assert indexes.find(ONE) is None
    assert not (folder / ONE).exists()


def test_what_others_could_have_made_is_not_used(indexes: Indexes, folder: Path, tmp_path: Path) -> None:
    indexes.keep(ONE, b"an index")
    os.chmod(folder / ONE, 0o620)
    assert indexes.find(ONE) is None
    indexes.keep(ONE, b"an index")
    os.rename(folder / ONE, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", folder / ONE)
    assert indexes.find(ONE) is None
    os.link(tmp_path / "elsewhere", folder / TWO)
    assert indexes.find(TWO) is None
    os.mkfifo(folder / THREE, 0o600)
    assert indexes.find(THREE) is None
    assert not list(folder.iterdir())
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_anothers_files_and_directories_are_not_used(indexes: Indexes, folder: Path) -> None:
    indexes.keep(ONE, b"an index")
    os.chown(folder / ONE, 12345, 12345)
    assert indexes.find(ONE) is None
    os.chown(folder, 12345, 12345)
    with pytest.raises(UnfitError):
        Indexes(str(folder), 1)


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    for mode in (0o755, 0o750, 0o701):
        (tmp_path / oct(mode)).mkdir()
        os.chmod(tmp_path / oct(mode), mode)
        with pytest.raises(UnfitError):
            Indexes(str(tmp_path / oct(mode)), 1)
    (tmp_path / "link").symlink_to(tmp_path)
    for path in ("link", "file/x"):
        with pytest.raises(OSError, match="irectory"):
            Indexes(str(tmp_path / path), 1)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "A1" * 20, "a1" * 40, "a1", "a1" * 19 + "/x", ".new-0123456789abcdef"]
)
def test_names_are_build_ids(indexes: Indexes, folder: Path, name: str) -> None:
    assert indexes.find(name) is None
    with pytest.raises(UnfitError):
        indexes.keep(name, b"an index")
    assert not list(folder.iterdir())


def test_lengths_are_bounded(indexes: Indexes, folder: Path) -> None:
    for data in (b"", bytes(MOST + 1)):
        with pytest.raises(UnfitError):
            indexes.keep(ONE, data)
    indexes.keep(ONE, b"an index")
    os.truncate(folder / ONE, MOST + 33)
    assert indexes.find(ONE) is None


def test_what_was_used_least_lately_goes_first(folder: Path) -> None:
    indexes = Indexes(str(folder), 2500)
    indexes.keep(ONE, bytes(1000))
    indexes.keep(TWO, bytes(1000))
    for name, seconds in ((ONE, 10), (TWO, 20)):
        os.utime(folder / name, (seconds, seconds))
    assert content(indexes.find(ONE)) is not None
    indexes.keep(THREE, bytes(1000))
    assert sorted(each.name for each in folder.iterdir()) == [ONE, THREE]
    indexes.keep(TWO, bytes(2400))
    assert [each.name for each in folder.iterdir()] == [TWO]


def test_what_a_killed_daemon_left_goes_too(folder: Path) -> None:
    indexes = Indexes(str(folder), 1500)
    (folder / ".new-0123456789abcdef").write_bytes(bytes(1000))
    os.utime(folder / ".new-0123456789abcdef", (1, 1))
    indexes.keep(ONE, bytes(1000))
    assert [each.name for each in folder.iterdir()] == [ONE]


def test_many_at_once_see_whole_ones_only(folder: Path) -> None:
    wholes = {bytes([n]) * 50_000 for n in range(4)}
    seen: set[bytes | None] = set()

    def write(data: bytes) -> None:
        mine = Indexes(str(folder), 120_000)
        for name in (ONE, TWO, THREE) * 10:
            mine.keep(name, data)

    def read() -> None:
        mine = Indexes(str(folder), 120_000)
        for _ in range(200):
            seen.add(content(mine.find(ONE)))

    Indexes(str(folder), 1)
    threads = [threading.Thread(target=write, args=(data,)) for data in wholes]
    threads += [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen <= wholes | {None}
    assert sum(each.stat().st_size for each in folder.iterdir()) <= 120_000


def test_a_full_disk_leaves_nothing_behind(indexes: Indexes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    indexes.keep(ONE, b"an index")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space"):
        indexes.keep(ONE, b"another")
    assert content(indexes.find(ONE)) == b"an index"
    assert [each.name for each in folder.iterdir()] == [ONE]


def test_what_is_no_index_of_ours_is_never_removed(folder: Path) -> None:
    """Whoever names a directory that has a use already, /root say, loses nothing."""
    indexes = Indexes(str(folder), 1500)
    others = ["id_rsa", ".new-notes", "a1", ".bashrc", ONE + ".bak"]
    for name in others:
        (folder / name).write_bytes(bytes(1000))
        os.utime(folder / name, (1, 1))
    (folder / "a1b2c3d4e5f60718").mkdir()
    for name in (ONE, TWO, THREE):
        indexes.keep(name, bytes(1000))
    assert sorted(each.name for each in folder.iterdir()) == sorted([*others, "a1b2c3d4e5f60718", THREE])


def test_short_ones_are_bounded_in_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 3)
    indexes = Indexes(str(folder), 1 << 30)
    for number in range(8):
        indexes.keep(f"{number:040x}", b"an index")
        os.utime(folder / f"{number:040x}", (number, number))
    assert sorted(each.name for each in folder.iterdir()) == [f"{number:040x}" for number in (5, 6, 7)]


@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_damage_is_seen(tmp_path_factory: pytest.TempPathFactory, data: bytes, draw: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-damage"
    indexes = Indexes(str(folder), 1 << 20)
    try:
        indexes.keep(ONE, data)
        good = (folder / ONE).read_bytes()
        bad = bytearray(good)
        for at in draw.draw(st.lists(st.integers(0, len(bad) * 8 - 1), max_size=4)):
            bad[at // 8] ^= 1 << at % 8
        bad = bad[: draw.draw(st.integers(0, len(bad)))] + draw.draw(st.binary(max_size=3))
        (folder / ONE).write_bytes(bad)
        assert content(indexes.find(ONE)) == (data if bad == good else None)
        assert (folder / ONE).exists() == (bad == good)
    finally:
        indexes.close()


def test_without_descriptors_there_is_none_and_it_stays(indexes: Indexes, folder: Path) -> None:
    indexes.keep(ONE, b"an index")
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limits[0], 512), limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        assert len(held) > 100
        assert indexes.find(ONE) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in held:
            os.close(fd)
    assert content(indexes.find(ONE)) == b"an index"


_ON_A_DISK = """
import os, subprocess, sys
from kvmd.handles.indexes import Indexes
folder, one, two = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k,mode=700", "none", folder], check=True)
indexes = Indexes(folder, 1 << 30)
indexes.keep(one, b"an index")
for name in (two, one):
    try:
        indexes.keep(name, bytes(1 << 20))
    except OSError as failure:
        assert "No space" in str(failure), failure
    else:
        raise AssertionError("there was room")
assert os.listdir(folder) == [one]
subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
later = Indexes(folder, 1 << 30)
with later.find(one) as kept:
    assert os.pread(kept.fd, 100, 0) == b"an index"
assert later.find(two) is None
try:
    later.keep(two, b"another")
except OSError as failure:
    assert "Read-only" in str(failure), failure
else:
    raise AssertionError("it was written")
"""


def test_on_a_disk_that_is_full_or_read_only(tmp_path: Path) -> None:
    enter = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*enter, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no mount namespace can be had here")
    (tmp_path / "disk").mkdir(mode=0o700)
    command = [*enter, sys.executable, "-c", _ON_A_DISK, tmp_path / "disk", ONE, TWO]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
