"""Where indexes are kept: a directory of the daemon's alone, in which nothing that others made, or damage, is used."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from pathlib import Path

import pytest

from kvmd.handles.indexes import MOST, Indexes, Kept, UnfitError

ONE, TWO, THREE = "a1" * 20, "b2" * 20, "c3" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def indexes(folder: Path) -> Indexes:
    return Indexes(str(folder), 1 << 20)


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
    (folder / ".new-0123").write_bytes(bytes(1000))
    os.utime(folder / ".new-0123", (1, 1))
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
