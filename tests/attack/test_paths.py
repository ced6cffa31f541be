"""Names that are to lead the daemon out of its dump directories, asked for by a user who may open all that is in them.

What each kind of name answers is tests/unit/opener's and test_hostile.py's, and 10,000 opens against swapped
links are tests/unit/opener/test_races.py's. Here the whole daemon is asked, by a stranger, while the names change.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import libkvm
from clients import connecting_as, relayed
from daemon import Daemon, running_daemon
from images import fixture
from procs import nothing_left, open_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")

QEMU = fixture("qemu/vmcore.kdump")
BANNER = QEMU.truth["kallsyms"]["linux_banner"]
CONFIG = """
[limits]
worker_linger = 60
[[policy]]
subjects = ["uid:4003"]
images = ["dump:*"]
verbs = ["info", "read"]
"""
SECRET = "the secret that must not come out"


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """``crash`` is served; ``outside`` holds a secret, and a dump that the policy would allow if it were inside."""
    with open_folder() as place:
        for name in ("crash", "outside"):
            (place / name).mkdir()
        (place / "outside" / "secret").write_text(SECRET)
        (place / "outside" / "secret").chmod(0o600)
        (place / "outside" / "vmcore").write_bytes(fixture("micro/zlib").path.read_bytes())
        (place / "outside" / "vmcore").chmod(0o600)
        (place / "crash" / "vmcore").write_bytes(QEMU.path.read_bytes())
        yield place


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[Daemon]:
    with running_daemon([place / "crash"], CONFIG) as running:
        yield running
    assert SECRET.encode() not in b"".join(running.log)


@pytest.fixture(scope="module")
def client(daemon: Daemon) -> Iterator[libkvm.Client]:
    with (
        connecting_as(4003, daemon.target) as peer,
        relayed(peer.connect) as target,
        libkvm.connect(target) as client,
    ):
        assert outcome(client, "vmcore") == "OK"
        yield client


def outcome(client: libkvm.Client, name: object) -> str:
    """What an open comes to: a reason, or OK once the dump is known to be the one that is inside."""
    try:
        with client.open(corefile=str(name)) as kernel:
            assert kernel.read(BANNER, 13) == b"Linux version"
    except libkvm.KvmError as failure:
        assert SECRET[:9] not in failure.message
        return failure.reason.value
    return "OK"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/proc/self/fd/3", "PATH_OUTSIDE"),
        ("/proc/1/root/etc/shadow", "PATH_OUTSIDE"),
        ("/dev/fd/3", "PATH_OUTSIDE"),
        ("/dev/mem", "POLICY_DENIED"),
        ("/dev/./mem", "PATH_OUTSIDE"),
        ("/proc/kcore", "POLICY_DENIED"),
        ("/proc/self/../kcore", "PATH_DOTDOT"),
        ("../outside/vmcore", "PATH_DOTDOT"),
        ("{crash}/../outside/vmcore", "PATH_DOTDOT"),
        ("{crash}/link", "PATH_SYMLINK"),
        ("link/vmcore", "PATH_SYMLINK"),
        ("fd", "PATH_SYMLINK"),
        ("fd-link", "PATH_SYMLINK"),
        ("fifo", "PATH_FIFO"),
        ("mem", "PATH_DEVICE"),
        ("open/hardlink", "PATH_HARDLINK"),
        ("open/dump", "PATH_HARDLINK"),
        ("hardlink", "UNSUPPORTED_FORMAT"),
    ],
)
def test_trick(client: libkvm.Client, daemon: Daemon, place: Path, name: str, reason: str) -> None:
    """The last one is root's own link, made where nobody else can make any; what is no dump shows nothing of itself."""
    crash, outside = place / "crash", place / "outside"
    made: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to(outside),
        "fd": lambda path: path.symlink_to("/proc/self/fd"),
        "fd-link": lambda path: path.symlink_to("/proc/self/fd/3"),
        "fifo": os.mkfifo,
        "mem": lambda path: os.mknod(path, 0o20666, os.makedev(1, 1)),
        "hardlink": lambda path: os.link(outside / "secret", path),
        "open": lambda path: path.mkdir(),
        "open/hardlink": lambda path: os.link(outside / "secret", path),
        "open/dump": lambda path: os.link(outside / "vmcore", path),
    }
    for word, make in made.items():
        if not os.path.lexists(crash / word):
            make(crash / word)
    (crash / "open").chmod(0o1777)
    with nothing_left(daemon.process.pid):
        assert outcome(client, name.format(crash=crash)) == reason


@contextlib.contextmanager
def swapped(*steps: Callable[[], object]) -> Iterator[None]:
    """Have a thread take these steps over and over."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            for step in steps:
                step()
                stop.wait(0.0005)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def race(client: libkvm.Client, name: str) -> Counter[str]:
    """What some hundred opens come to."""
    return Counter(outcome(client, name) for _ in range(400))


def test_file_swapped_for_links(client: libkvm.Client, place: Path) -> None:
    """To the secret and to another dump. The file inside is empty, which the daemon tells before there is a worker."""
    crash, outside = place / "crash", place / "outside"

    def to_link(target: str) -> None:
        (crash / "new-link").symlink_to(outside / target)
        (crash / "new-link").rename(crash / "swapped")

    def to_good() -> None:
        (crash / "new-good").touch()
        (crash / "new-good").rename(crash / "swapped")

    with swapped(lambda: to_link("secret"), to_good, lambda: to_link("vmcore"), to_good):
        seen = race(client, "swapped")
    assert seen.keys() <= {"EMPTY_FILE", "PATH_SYMLINK", "SOURCE_NOT_FOUND", "SOURCE_IO"}
    assert seen["EMPTY_FILE"]
    assert seen["PATH_SYMLINK"]


def test_directory_swapped_by_rename(client: libkvm.Client, place: Path) -> None:
    crash, outside = place / "crash", place / "outside"
    (crash / "host").mkdir()
    os.link(crash / "vmcore", crash / "host" / "vmcore")

    def to_link() -> None:
        (crash / "host").rename(crash / "aside")
        (crash / "host").symlink_to(outside)

    def to_good() -> None:
        (crash / "host").unlink()
        (crash / "aside").rename(crash / "host")

    with swapped(to_link, to_good):
        seen = race(client, "host/vmcore")
    assert seen.keys() <= {"OK", "PATH_SYMLINK", "SOURCE_NOT_FOUND", "SOURCE_IO"}
    assert seen["OK"]
    assert seen["PATH_SYMLINK"]
