"""The opener opens what it may, says why not otherwise, and is never talked into opening anything else."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmd import opener as module
from kvmd import syscalls
from kvmd.errors import KvmError, Reason, SourceNotFoundError
from kvmd.opener import MAX_NAME, Opener

DUMP = b"a dump"
SECRET = b"a secret"


@pytest.fixture(params=["openat2", "parts"])
def way(request, monkeypatch):
    """Every test of opening runs with openat2 and, as on a kernel before 5.6, without."""
    if request.param == "parts":

        def absent(*_args):
            raise OSError(errno.ENOSYS, "no openat2")

        monkeypatch.setattr(module, "_by_openat2", absent)
    return request.param


@pytest.fixture
def crash(tmp_path):
    (tmp_path / "crash").mkdir()
    (tmp_path / "crash" / "vmcore").write_bytes(DUMP)
    (tmp_path / "crash" / "host").mkdir()
    (tmp_path / "crash" / "host" / "vmcore").write_bytes(DUMP + b" of host")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(SECRET)
    return tmp_path / "crash"


@pytest.fixture
def opener(crash):
    return Opener([str(crash)])


@pytest.fixture(autouse=True)
def no_leak() -> Iterator[None]:
    """No test leaves a descriptor behind, whatever it provoked."""
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def content(opened):
    with opened:
        return os.read(opened.fd, 100)


def reason(opener, name):
    with pytest.raises(KvmError) as caught:
        opener.open_dump(str(name)).close()
    return caught.value.reason


def test_absolute_and_relative_names(way, opener, crash):
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


def test_relative_names_are_looked_up_in_order(way, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "both").write_bytes(name.encode())
    (tmp_path / "b" / "one").write_bytes(b"b")
    opener = Opener([str(tmp_path / "none"), str(tmp_path / "a"), str(tmp_path / "b")])
    assert content(opener.open_dump("both")) == b"a"
    assert content(opener.open_dump("one")) == b"b"
    assert opener.dump_candidates("one") == tuple(str(tmp_path / d / "one") for d in ("none", "a", "b"))
    assert reason(opener, "neither") is Reason.SOURCE_NOT_FOUND


def test_a_refusal_in_an_earlier_directory_hides_a_later_one(way, tmp_path):
    """A name that means a link in the first directory doesn't silently mean another file in the second."""
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "vmcore").symlink_to("/etc/passwd")
    (tmp_path / "b" / "vmcore").write_bytes(DUMP)
    assert reason(Opener([str(tmp_path / "a"), str(tmp_path / "b")]), "vmcore") is Reason.PATH_SYMLINK


def test_kernels_have_directories_of_their_own(way, tmp_path, crash):
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug" / "vmlinux").write_bytes(b"ELF")
    opener = Opener([str(crash)], [str(tmp_path / "debug")])
    assert content(opener.open_exec("vmlinux")) == b"ELF"
    assert content(opener.open_exec("vmcore")) == DUMP
    assert opener.exec_candidates("x") == (str(tmp_path / "debug/x"), str(crash / "x"))
    assert reason(opener, "vmlinux") is Reason.SOURCE_NOT_FOUND
    assert reason(opener, tmp_path / "debug/vmlinux") is Reason.PATH_OUTSIDE


def test_an_empty_dump_is_refused_and_an_empty_kernel_is_not(way, opener, crash):
    (crash / "empty").touch()
    assert reason(opener, "empty") is Reason.EMPTY_FILE
    assert content(opener.open_exec("empty")) == b""


# --- the directories


def test_a_directory_may_be_reached_through_links_in_both_spellings(way, tmp_path, crash):
    (tmp_path / "var").symlink_to(".")
    opener = Opener([f"{tmp_path}/var/crash"])
    for name in (f"{tmp_path}/var/crash/vmcore", f"{crash}/vmcore", "vmcore"):
        assert opener.dump_candidates(name) == (f"{crash}/vmcore",)
        with opener.open_dump(name) as opened:
            assert opened.path == f"{crash}/vmcore"


def test_a_directory_turned_into_a_link_later_is_not_followed(way, opener, crash, tmp_path):
    crash.rename(tmp_path / "moved")
    crash.symlink_to("outside")
    for name in ("secret", crash / "secret"):
        assert reason(opener, name) in (Reason.SOURCE_NOT_FOUND, Reason.PATH_SYMLINK)


def test_a_parent_of_a_directory_turned_into_a_link_later_is_not_followed(way, tmp_path):
    (tmp_path / "p" / "crash").mkdir(parents=True)
    opener = Opener([f"{tmp_path}/p/crash"])
    (tmp_path / "p").rename(tmp_path / "q")
    (tmp_path / "q" / "crash" / "vmcore").write_bytes(SECRET)
    (tmp_path / "p").symlink_to("q")
    assert reason(opener, "vmcore") is Reason.PATH_SYMLINK


def test_a_directory_made_later_is_found(way, tmp_path):
    opener = Opener([f"{tmp_path}/late"])
    assert reason(opener, "vmcore") is Reason.SOURCE_NOT_FOUND
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "vmcore").write_bytes(DUMP)
    assert content(opener.open_dump("vmcore")) == DUMP


def test_a_directory_must_be_absolute():
    with pytest.raises(ValueError, match="absolute"):
        Opener(["crash"])


def test_no_directories():
    assert reason(Opener([]), "vmcore") is Reason.PATH_OUTSIDE
    assert reason(Opener([]), "/vmcore") is Reason.PATH_OUTSIDE


def test_the_root_as_a_directory(way, crash):
    assert content(Opener(["/"]).open_dump(f"{crash}/vmcore")) == DUMP


# --- refusals


@pytest.mark.parametrize("name", ["..", "../crash/vmcore", "host/..", "host/../vmcore", "/etc/../etc/passwd", "/.."])
def test_dotdot_is_refused_as_text(opener, name):
    assert reason(opener, name) is Reason.PATH_DOTDOT


def test_dots_that_are_a_name_are_not(opener, crash):
    (crash / "..x").write_bytes(DUMP)
    assert content(opener.open_dump("..x")) == DUMP


def test_length(opener, crash):
    prefix = f"{crash}/"
    fits = prefix + "/" * (MAX_NAME - 1 - len(prefix) - len("vmcore")) + "vmcore"
    assert content(opener.open_dump(fits)) == DUMP
    assert reason(opener, fits.replace("vmcore", "/vmcore")) is Reason.PATH_TOO_LONG
    assert reason(opener, "é" * (MAX_NAME // 2)) is Reason.PATH_TOO_LONG


def test_a_part_too_long_for_the_file_system(way, opener):
    assert reason(opener, "x" * 300) is Reason.PATH_TOO_LONG


@pytest.mark.parametrize("name", ["", "vm\0core", "\0", "/etc/passwd\0", "\ud800"])
def test_what_is_no_name(opener, name):
    assert reason(opener, name) is Reason.BAD_ARGUMENT


def test_outside_is_answered_alike_whatever_is_there(opener, tmp_path):
    answers = set()
    for name in ("secret", "absent", "secret/x", ""):
        with pytest.raises(KvmError) as caught:
            opener.open_dump(f"{tmp_path}/outside/{name}")
        path = caught.value.metadata["path"]
        answers.add((caught.value.reason, caught.value.message.replace(path, "*"), caught.value.errno))
    assert answers == {(Reason.PATH_OUTSIDE, "*: not in a dump directory", errno.EACCES)}


def test_outside_touches_no_file(opener, tmp_path, monkeypatch):
    def touched(*args, **kwargs):
        raise AssertionError(args)

    with monkeypatch.context() as patch:
        for name in ("open", "stat", "lstat", "fstat"):
            patch.setattr(f"kvmd.opener.os.{name}", touched)
        assert reason(opener, f"{tmp_path}/outside/secret") is Reason.PATH_OUTSIDE


def test_a_directory_whose_name_begins_alike_is_outside(opener, crash):
    assert reason(opener, f"{crash}-other/vmcore") is Reason.PATH_OUTSIDE


@pytest.mark.parametrize("target", ["vmcore", "../outside/secret", "/etc/passwd", "absent", "link", "/proc/self/fd/0"])
def test_a_link_is_refused_wherever_it_leads(way, opener, crash, target):
    (crash / "link").symlink_to(target)
    assert reason(opener, "link") is Reason.PATH_SYMLINK


@pytest.mark.parametrize("name", ["link/secret", "link/absent", "host/deep/secret"])
def test_a_link_on_the_way_is_refused_alike(way, opener, crash, tmp_path, name):
    (crash / "link").symlink_to(tmp_path / "outside")
    (crash / "host" / "deep").symlink_to("../../outside")
    assert reason(opener, name) is Reason.PATH_SYMLINK


def test_a_fifo_is_refused_without_waiting_and_without_a_trace(way, opener, crash):
    os.mkfifo(crash / "fifo")
    assert reason(opener, "fifo") is Reason.PATH_FIFO
    with pytest.raises(OSError, match="No such device"):  # ENXIO: nobody has it open for reading, nor had
        os.open(crash / "fifo", os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
@pytest.mark.parametrize("kind", [0o020000, 0o060000], ids=["character", "block"])
def test_a_device_is_refused_and_not_opened(way, opener, crash, kind):
    os.mknod(crash / "device", kind | 0o666, os.makedev(240, 77))  # opening it would say ENXIO
    assert reason(opener, "device") is Reason.PATH_DEVICE


def test_a_socket_is_refused(way, opener, crash):
    here = os.open(".", os.O_PATH)
    os.chdir(crash)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("socket")
    os.fchdir(here)
    os.close(here)
    assert reason(opener, "socket") is Reason.PATH_SOCKET


@pytest.mark.parametrize("name", ["host", "host/", ".", "./", "/"])
def test_a_directory_is_refused(way, opener, crash, name):
    assert reason(opener, name if name != "/" else f"{crash}/") is Reason.PATH_DIRECTORY


@pytest.mark.parametrize("name", ["absent", "absent/vmcore", "vmcore/x"])
def test_not_found(way, opener, name):
    with pytest.raises(SourceNotFoundError) as caught:
        opener.open_dump(name)
    assert caught.value.metadata["errno"] == ("ENOTDIR" if name == "vmcore/x" else "ENOENT")
    assert caught.value.metadata["path"] == name


@pytest.mark.skipif(os.getuid() != 0, reason="needs uid 0")
def test_a_file_that_the_daemon_may_not_read(way, opener, crash):
    for path in (crash.parent, crash.parent.parent, crash.parent.parent.parent):
        os.chmod(path, 0o755)
    (crash / "vmcore").chmod(0)
    os.seteuid(12345)
    try:
        assert reason(opener, "vmcore") is Reason.SOURCE_ACCESS
    finally:
        os.seteuid(0)


# --- failures of the operating system


@pytest.mark.parametrize("call", ["open", "fstat"])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (errno.EMFILE, Reason.SOURCE_IO),
        (errno.ENFILE, Reason.SOURCE_IO),
        (errno.EIO, Reason.SOURCE_IO),
        (errno.EINTR, Reason.SOURCE_IO),
        (errno.ESTALE, Reason.SOURCE_IO),
        (errno.EWOULDBLOCK, Reason.SOURCE_IO),
        (errno.EACCES, Reason.SOURCE_ACCESS),
        (errno.ENOENT, Reason.SOURCE_NOT_FOUND),
    ],
)
def test_the_nth_call_fails(  # noqa: PLR0917
    way, opener, monkeypatch, call, code, expected
):
    """For every N: a typed answer with the errno, and no descriptor left (the fixture looks)."""
    real = getattr(os, call)
    failed_at = 0
    for nth in range(1, 20):
        count = 0

        def failing(*args, nth=nth, **kwargs):
            nonlocal count
            count += 1
            if count == nth:
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(f"kvmd.opener.os.{call}", failing)
            try:
                opener.open_dump("host/vmcore").close()
            except KvmError as failure:
                assert failure.reason is expected
                assert failure.metadata["errno"] == errno.errorcode[code]
                failed_at = nth
            else:
                break
    assert failed_at >= 2


def test_openat2_is_tried_again_after_a_signal(opener, monkeypatch):
    real = syscalls.syscall
    answers = [InterruptedError(errno.EINTR, "signal"), None, InterruptedError(errno.EINTR, "signal"), None]

    def interrupted(*args, **kwargs):
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return real(*args, **kwargs)

    monkeypatch.setattr(syscalls, "syscall", interrupted)
    assert content(opener.open_dump("vmcore")) == DUMP
    assert answers == []


def test_openat2_itself_is_what_is_used(opener, monkeypatch):
    """The fallback is no silent substitute on a kernel that has the call."""

    def fallback(*_args):
        raise AssertionError

    monkeypatch.setattr(module, "_by_parts", fallback)
    assert content(opener.open_dump("vmcore")) == DUMP


def test_the_inode_is_compared_after_the_open(way, opener, crash, monkeypatch):
    """As if /proc weren't the kernel's: what was opened is not what was looked at."""
    real = os.open

    def other(path, *args, **kwargs):
        return real(crash / "host/vmcore" if str(path).startswith("/proc/") else path, *args, **kwargs)

    monkeypatch.setattr("kvmd.opener.os.open", other)
    with pytest.raises(KvmError) as caught:
        opener.open_dump("vmcore")
    assert (caught.value.reason, caught.value.metadata["errno"]) == (Reason.SOURCE_IO, "ESTALE")


def test_messages_hold_nothing_of_the_file(way, opener, crash):
    (crash / "link").symlink_to("/etc/shadow-of-something")
    for name in ("link", "vmcore/x"):
        with pytest.raises(KvmError) as caught:
            opener.open_dump(name)
        assert "shadow" not in str(caught.value) + repr(caught.value.metadata)
        assert DUMP.decode() not in str(caught.value)


# --- races


def swapping(steps):
    """Run steps over and over in a thread; stop() ends and joins it, and tells how often."""
    stop, rounds = threading.Event(), [0]

    def loop():
        while not stop.is_set():
            for step in steps:
                step()
            rounds[0] += 1

    thread = threading.Thread(target=loop)
    thread.start()

    def end():
        stop.set()
        thread.join()
        return rounds[0]

    return end


@pytest.mark.parametrize("what", ["file", "directory"])
def test_swapping_a_name_for_a_link_never_yields_the_outside(way, opener, crash, tmp_path, what):
    """renameat2(RENAME_EXCHANGE) isn't needed: two renames over the name are as atomic, one at a time."""
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
    seen = {"opened": 0}
    try:
        for _ in range(4000):
            try:
                data = content(opener.open_dump(name))
            except KvmError as refused:
                seen[refused.reason] = seen.get(refused.reason, 0) + 1
            else:
                assert data == DUMP
                seen["opened"] += 1
    finally:
        rounds = end()
    assert rounds > 10
    assert seen.keys() <= {"opened", Reason.PATH_SYMLINK, Reason.SOURCE_NOT_FOUND, Reason.EMPTY_FILE, Reason.SOURCE_IO}
    assert seen["opened"]
    assert seen[Reason.PATH_SYMLINK]


def test_swapping_a_file_for_a_fifo_never_waits(way, opener, crash):
    def to_fifo():
        os.mkfifo(crash / "new")
        (crash / "new").rename(crash / "vmcore")

    def to_file():
        (crash / "new").write_bytes(DUMP)
        (crash / "new").rename(crash / "vmcore")

    end = swapping([to_fifo, to_file])
    seen = set()
    try:
        for _ in range(2000):
            try:
                assert content(opener.open_dump("vmcore")) == DUMP
                seen.add("opened")
            except KvmError as refused:
                seen.add(refused.reason)
    finally:
        end()
    assert {"opened", Reason.PATH_FIFO} <= seen


# --- any name at all

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
    assert opened.path in opener.dump_candidates(name)
    assert os.path.realpath(opened.path) == opened.path
    assert opened.path.startswith(f"{root}/crash/")
    assert content(opened) == DUMP
