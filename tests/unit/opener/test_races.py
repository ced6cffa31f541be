"""Names that change while they are opened, and any name at all."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd.errors import KvmError, Reason
from kvmd.opener import Opener

DUMP = b"a dump"


def swapping(steps):
    """Run steps over and over in a thread; the function returned ends it."""
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            for step in steps:
                step()

    thread = threading.Thread(target=loop)
    thread.start()

    def end():
        stop.set()
        thread.join()

    return end


def attempts(enough, least=2000):
    """At least so many, and on until there were enough of every kind, however busy the machine."""
    deadline = time.monotonic() + 30
    count = 0
    while count < least or (not enough() and time.monotonic() < deadline):
        yield count
        count += 1


@pytest.mark.parametrize("what", ["file", "directory"])
def test_swapping_a_name_for_a_link_never_yields_the_outside(way, opener, crash, tmp_path, what, content):  # noqa: PLR0917 - fixtures
    """In 10,000 opens; two renames over the name, one at a time, are as atomic as renameat2(RENAME_EXCHANGE)."""
    outside = tmp_path / "outside"
    if what == "file":
        name = "vmcore"
        good, link, now = crash / "good", crash / "link", crash / "vmcore"

        def to_link():
            link.unlink(missing_ok=True)
            link.symlink_to(outside / "secret")
            link.rename(now)

        def to_good():
            good.write_bytes(DUMP)
            good.rename(now)
    else:
        name = "host/secret"
        (crash / "host" / "secret").write_bytes(DUMP)

        def to_link():
            (crash / "host").rename(crash / "aside")
            (crash / "host").symlink_to(outside)

        def to_good():
            (crash / "host").unlink()
            (crash / "aside").rename(crash / "host")

    end = swapping([to_link, to_good])
    seen = Counter()
    try:
        for _ in attempts(lambda: min(seen["opened"], seen[Reason.PATH_SYMLINK]) >= 100, least=10_000):
            try:
                data = content(opener.open_dump(name))
            except KvmError as refused:
                seen[refused.reason] += 1
            else:
                assert data == DUMP
                seen["opened"] += 1
    finally:
        end()
    assert seen.keys() <= {"opened", Reason.PATH_SYMLINK, Reason.SOURCE_NOT_FOUND, Reason.EMPTY_FILE, Reason.SOURCE_IO}
    assert seen["opened"]
    assert seen[Reason.PATH_SYMLINK]


def test_swapping_a_file_for_a_fifo_never_waits(way, opener, crash, content):
    def to_fifo():
        os.mkfifo(crash / "new")
        (crash / "new").rename(crash / "vmcore")

    def to_file():
        (crash / "new").write_bytes(DUMP)
        (crash / "new").rename(crash / "vmcore")

    end = swapping([to_fifo, to_file])
    seen = set()
    try:
        for _ in attempts(lambda: {"opened", Reason.PATH_FIFO} <= seen):
            try:
                assert content(opener.open_dump("vmcore")) == DUMP
                seen.add("opened")
            except KvmError as refused:
                seen.add(refused.reason)
    finally:
        end()
    assert {"opened", Reason.PATH_FIFO} <= seen


PIECES = st.lists(st.sampled_from(["..", ".", "", "vmcore", "host", "link", "fifo", "etc", "passwd", "\0", "x" * 300]))


@given(pieces=PIECES, absolute=st.booleans(), below=st.booleans())
def test_any_name_opens_what_is_inside_or_raises_a_typed_error(tmp_path_factory, pieces, absolute, below):
    root = tmp_path_factory.getbasetemp() / "any"
    if not root.exists():
        (root / "crash" / "host").mkdir(parents=True)
        (root / "crash" / "vmcore").write_bytes(DUMP)
        (root / "crash" / "host" / "vmcore").write_bytes(DUMP)
        (root / "crash" / "link").symlink_to("/etc")
        os.mkfifo(root / "crash" / "fifo")
    opener = Opener([str(root / "crash")])
    name = "/".join(pieces)
    if absolute:
        name = f"{root}/crash/{name}" if below else f"/{name}"
    try:
        opened = opener.open_dump(name)
    except KvmError:
        return
    with opened:
        assert os.read(opened.fd, 100) == DUMP
    assert opened.path in opener.dump_candidates(name)
    assert os.path.realpath(opened.path) == opened.path
    assert opened.path.startswith(f"{root}/crash/")
