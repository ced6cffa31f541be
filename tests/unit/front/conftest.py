"""A place for sockets that other users can reach, a front with an echoing upstream, and clients in other processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from kvmd.access.limits import Quotas
from kvmd.config import Limits
from kvmd.front.listener import bind_unix
from kvmd.front.lock import InstanceLock
from kvmd.front.peers import Connection, Peers
from kvmd.front.pump import Pump
from kvmd.front.relay import Front


def open_fds() -> list[str]:
    """What this process's descriptors are, but for the one that lists them."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return sorted(each for each in found if not each.endswith("/fd"))


@pytest.fixture
def fds() -> Callable[[], list[str]]:
    return open_fds


@pytest.fixture
def place() -> Iterator[str]:
    """A directory with a short name that every user may enter (pytest's own are 0700)."""
    directory = tempfile.mkdtemp(prefix="kvmd-")
    os.chmod(directory, 0o755)
    yield directory
    shutil.rmtree(directory)


LIMITS = Limits(connections=256, connections_per_uid=256)


class Bed:
    """A front, its table, and the upstream it relays to."""

    def __init__(self, place: str) -> None:
        self.public = f"{place}/kvmd.sock"
        self.private = f"{place}/upstream"
        self.peers = Peers()
        self.front: Front
        self.sides: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.writers: list[asyncio.StreamWriter] = []

    async def accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.sides.put_nowait((reader, writer))

    def start(self, *, limits: Limits = LIMITS, **options: object) -> Front:
        self.quota = Quotas(limits)["connections"]
        self.front = Front(self.peers, self.private, self.quota, **options)  # type: ignore[arg-type]
        with InstanceLock(self.public) as lock:
            self.front.serve(bind_unix(self.public, 0o666, lock))
        return self.front

    async def client(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self.public)
        self.writers.append(writer)
        return reader, writer

    async def upstream(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Connection]:
        """The upstream's side of the next connection, and the front's entry of it."""
        reader, writer = await asyncio.wait_for(self.sides.get(), 5)
        name = writer.get_extra_info("peername")
        connection = self.peers.lookup("unix-abstract:" + name.removeprefix(b"\0").decode())
        assert connection is not None
        return reader, writer, connection


@pytest.fixture
async def bed(place: str) -> AsyncIterator[Bed]:
    made = Bed(place)
    server = await asyncio.start_unix_server(made.accepted, made.private)
    yield made
    if hasattr(made, "front"):
        made.front.close()
    server.close()
    for writer in made.writers:
        if not writer.transport.is_closing():
            writer.transport.abort()
    for _ in range(5):  # the transports close their sockets in callbacks
        await asyncio.sleep(0)


async def closing(connection: Connection) -> None:
    """Wait for a connection's close."""
    gone = asyncio.Event()
    connection.on_close(gone.set)
    await asyncio.wait_for(gone.wait(), 5)


@pytest.fixture
def closed() -> Callable[[Connection], object]:
    return closing


@pytest.fixture
def spawn(place: str) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start Python code in a process of its own; sys.argv[1] is the public socket, and ``sock`` is connected to it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, **options: object) -> subprocess.Popen[bytes]:
        head = "import os, socket, sys, time\nsock = socket.socket(socket.AF_UNIX)\nsock.connect(sys.argv[1])\n"
        process = subprocess.Popen(  # type: ignore[call-overload]
            [_python(), "-IS", "-c", head + code, f"{place}/kvmd.sock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            **options,
        )
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _python() -> str:
    """An interpreter that other users can execute, if there is one."""
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


@pytest.fixture
def pair() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    """Connected sockets that are closed at the end."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        both = socket.socketpair()
        made.extend(both)
        return both

    yield make
    for sock in made:
        sock.close()


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until a condition holds that has no event: of descriptors, of a pump."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], object]], object]:
    return until


def pumps(connection: Connection) -> tuple[Pump, ...]:
    """Reached through the callback that the link left with its connection."""
    (link,) = [each.__self__ for each in connection._callbacks if hasattr(each, "__self__")]
    return link._pumps  # type: ignore[no-any-return]


@pytest.fixture
def inward() -> Callable[[Connection], Pump]:
    """The pump from a connection's client."""
    return lambda connection: pumps(connection)[0]


@pytest.fixture
def outward() -> Callable[[Connection], Pump]:
    """The pump to a connection's client."""
    return lambda connection: pumps(connection)[1]
