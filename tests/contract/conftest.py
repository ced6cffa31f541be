"""One real daemon for all contract tests, which hold for every dump that there is, over every transport.

With KVMD_TEST_LIVE=1 in the environment, tests of test_freebsd.py that FreeBSD runs on the live kernel run on the
live kernel, through the daemon of KVMD_TARGET.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import bsd
import bsd_minidump
import libkvm
from images import DATA, fixture
from libkvm.compat import connection
from libkvm.fast import joining
from libkvm.session import Session
from unit.client import facade

LIVE = os.environ.get("KVMD_TEST_LIVE") == "1"
SWAP = ("swap.img", "swapfile.img", "swapfs.img")
NAMES = ["qemu", "la57", "hole", "kdump", "debian-6.1-panic", "arm64-6.1"]


@dataclass(frozen=True)
class Dump:
    """A dump and what was true of its kernel."""

    name: str
    path: str
    truth: dict[str, Any]

    def symbol(self, name: str) -> int:
        return self.truth["kallsyms"][name]

    @property
    def data(self) -> int:
        """The beginning of a page from which on a lot of the kernel's data can be read."""
        known = self.truth["kallsyms"]
        return (known.get("__start_rodata") or known["init_task"]) & -4096

    @property
    def arm64(self) -> bool:
        return self.truth["machine"] == "aarch64"

    @property
    def processes(self) -> dict[int, dict[str, Any]]:
        """The processes by pid, without the helper that ended about when the dump was made."""
        alive = set(self.truth["pids_at_end"])
        return {each["pid"]: each for each in self.truth["processes"] if each["pid"] in alive}

    def swapped(self, what: str) -> set[int]:
        """The processes some of whose pages of a kind were swapped out."""
        return {page["pid"] for page in self.truth["pages"] if page["swapped"] and page["what"] == what}

    def image(self, name: str) -> str:
        """A swap image: ``swap.img``, ``swapfile.img`` or, of the disk that the file lies on, ``swapfs.img``."""
        return os.path.realpath(fixture(f"{self.name}/{name}").path)

    def named(self, word: str) -> int:
        """The pid of the process whose argv[0] ends so."""
        [pid] = [pid for pid, each in self.processes.items() if each["argv"] and each["argv"][0].endswith(word)]
        return pid


def load(name: str) -> Dump:
    found = fixture(f"{name}/vmcore.kdump")
    truth = dict(found.truth)
    if "init_task" not in truth["kallsyms"]:  # /proc/kallsyms has functions only; DWARF has the rest
        dwarf = json.loads((DATA / name / "dwarf.json").read_text())
        told = {symbol: value for symbol, (value, _) in dwarf["objects"].items()}
        truth["kallsyms"] = told | truth["kallsyms"]
    return Dump(name, os.path.realpath(found.path), truth)


@pytest.fixture(scope="session")
def dump(request) -> Dump:
    return load(request.param)


@pytest.fixture(scope="session")
def one() -> Dump:
    """A dump, for what does not depend on which."""
    return load("qemu")


@pytest.fixture(scope="session")
def odd(tmp_path_factory) -> Path:
    """A dump directory of files that are no dumps."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "some-file").write_text("this is a text file")
    (folder / "empty").touch()
    (folder / "link").symlink_to("some-file")
    return folder


RULE = """
[[policy]]
subjects = ["cert:alice"]
images = ["live", "live:mem", "dump:*"]
verbs = ["*"]
"""


@pytest.fixture(scope="session")
def dumps(tmp_path_factory) -> Path:
    """A dump directory of BSD dumps and kernels, by the names that the acceptance list gives them."""
    folder = tmp_path_factory.mktemp("bsd")
    for name, data in bsd_files().items():
        (folder / name).write_bytes(data)
    return folder


def bsd_files() -> dict[str, bytes]:
    made = {name: build().file() for name, build in {"k1": bsd.k1, "k2": bsd.k2, "k3": bsd.k3, "k4": bsd.k4}.items()}
    made |= {
        "k5": bsd.k5().file(),
        "k6": b"\xa5" * 8192 + bsd.k1().device(),
        "e1": bsd.e1(),
        "m4": bsd_minidump.arm64_minidump(),
    }
    made |= {f"m{version}": bsd_minidump.minidump(version).file() for version in (1, 2, 3)}
    made |= bsd.k7()
    for version in (0, 4):
        made[f"version{version}"] = data = bytearray(made["m3"])
        data[24] = version
    names = {"dumpmag": bsd.TEXT_BASE, "version": bsd.TEXT_BASE + 8}
    made |= {"netbsd": bsd.kernel(names, netbsd=True), "netbsd-stripped": bsd.kernel(None, netbsd=True)}
    made |= {"freebsd": bsd.kernel(bsd.E1_SYMBOLS), "freebsd-arm64": bsd.kernel({"a": 1}, bsd.AARCH64)}
    return made


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Any:
    from remote import Site  # not where there is a running kernel instead, and neither dumps nor certificates

    return Site.made(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def targets(odd, dumps, request) -> Iterator[dict[str, str]]:
    """One daemon, by each way to it."""
    if LIVE:
        yield dict.fromkeys(CONNECT, os.environ["KVMD_TARGET"])
        return
    from remote import remote_daemon

    paths = [path for one in map(load, NAMES) for path in (one.path, *map(one.image, SWAP))]
    folders = {os.path.dirname(path) for path in paths}
    config = request.getfixturevalue("site").config(rules=RULE)
    with remote_daemon(config, [*folders, odd, dumps]) as (daemon, remote):
        yield dict.fromkeys(CONNECT, daemon.target) | {"tls": remote, "tls-aio": remote}


@pytest.fixture
def target(targets, transport) -> str:
    return targets[transport]


CONNECT = {
    "grpc": libkvm.connect, "fast": libkvm.connect, "aio": facade.connect, "tls": libkvm.connect,
    "tls-aio": facade.connect,
}  # fmt: skip
USUAL = ["grpc", "fast", "aio"] if LIVE else ["grpc", "fast", "aio", "tls"]
FACTORIES = dict.fromkeys(("grpc", "fast", "tls"), connection.transport) | dict.fromkeys(
    ("aio", "tls-aio"), facade.LoopTransport
)
SESSIONS: dict[str, dict[str, Session]] = {name: {} for name in CONNECT}


def pytest_generate_tests(metafunc) -> None:
    """Run every test over four transports, but for modules that say otherwise.

    A test of every dump meets every dump over one of them, and every transport with the newest dump: all pairs would
    say little more.
    """
    transports = getattr(metafunc.module, "TRANSPORTS", USUAL)
    if "dump" in metafunc.fixturenames:
        pairs = [*((name, transports[0]) for name in NAMES), *((NAMES[-1], each) for each in transports[1:])]
        metafunc.parametrize(("dump", "transport"), pairs, indirect=True)
    elif "transport" in metafunc.fixturenames:
        metafunc.parametrize("transport", transports, indirect=True)


@pytest.fixture
def transport(request, monkeypatch) -> str:
    """The transport under test, which the C face uses too."""
    if request.param != "fast":
        monkeypatch.setattr(joining, "join", lambda session, descriptor: None)
    monkeypatch.setattr(connection, "transport", FACTORIES[request.param])
    monkeypatch.setattr(connection, "_sessions", SESSIONS[request.param])
    return request.param


@pytest.fixture(autouse=True)
def default_target(target, request, monkeypatch) -> None:
    monkeypatch.setenv("KVMD_TARGET", target)
    if target.startswith("dns:"):
        for key, value in request.getfixturevalue("site").keywords().items():
            monkeypatch.setenv(f"KVMD_{key.upper()}", value)


@pytest.fixture(scope="session", autouse=True)
def c_face_connections(targets) -> Iterator[None]:
    yield
    for sessions in SESSIONS.values():
        for session in sessions.values():
            session.close()


@pytest.fixture
def connect(transport):
    """Connects over the transport under test."""
    return CONNECT[transport]


@pytest.fixture
def client(target, connect) -> Iterator[libkvm.Client]:
    with connect(target) as opened:
        yield opened


@pytest.fixture
def kernel(client, dump) -> Iterator[libkvm.Kernel]:
    with client.open(dump.path) as opened:
        yield opened


@pytest.fixture(scope="session")
def corefile(request) -> str | None:
    """What a test that FreeBSD runs on the live kernel opens."""
    return None if LIVE else request.getfixturevalue("one").path


@pytest.fixture
def bare():
    """A handle that was opened with KVM_NO_FILES."""
    opened = libkvm.kvm_openfiles(None, None, None, libkvm.KVM_NO_FILES, None)
    assert opened is not None
    yield opened
    libkvm.kvm_close(opened)


@pytest.fixture
def kd(dump):
    opened = libkvm.kvm_openfiles(None, dump.path, None, 0, None)
    assert opened is not None
    yield opened
    libkvm.kvm_close(opened)


@pytest.fixture
def loud(one):
    """A handle whose hard errors go to stderr."""
    opened = libkvm.kvm_open(None, one.path, None, 0, "prog")
    assert opened is not None
    yield opened
    libkvm.kvm_close(opened)
