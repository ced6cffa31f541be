"""What comes to the port that is no client: it gets nothing, and local clients don't notice."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import libkvm
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from kvmd.v1 import memory_pb2
from procs import descriptors
from remote import BANNER, IMAGE, Site, eventually, port_of, records, remote_daemon, said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("site"))


@contextlib.contextmanager
def under(attack: Callable[[threading.Event], None], threads: int) -> Iterator[None]:
    """While so many threads attack, until they are told that it is over."""
    over = threading.Event()
    attackers = [threading.Thread(target=attack, args=(over,)) for _ in range(threads)]
    for each in attackers:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in attackers:
            each.join(30)


def pace(target: str, calls: int = 150) -> float:
    """The median time of a local client's read, while it lasts."""
    took = []
    with libkvm.connect(target) as client, client.open(IMAGE.path) as kernel:
        for _ in range(calls):
            began = time.monotonic()
            assert kernel.read(BANNER, 13) == b"Linux version"
            took.append(time.monotonic() - began)
    return statistics.median(took)


def test_plain_words_are_refused(site: Site) -> None:
    """HTTP/2 without TLS, HTTP, TLS of another age, noise, silence: nobody gets as far as grpc."""
    with remote_daemon(site.config("[limits]\nhandshake_timeout = 2"), [IMAGE.path.parent]) as (daemon, _):
        address = ("127.0.0.1", port_of(daemon))
        for words in (
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\x80\x2e\x01\x00\x02",
            os.urandom(512),
            b"\x16\x03\x01\xff\xff" + bytes(70_000),
        ):
            with socket.create_connection(address, 10) as sock, contextlib.suppress(ConnectionError):
                sock.sendall(words)
                while answer := sock.recv(4096):
                    assert b"kvmd" not in answer
                    assert not answer.startswith(b"HTTP")
        eventually(lambda: len(records(daemon, "refused")) == 5)
        with grpc.insecure_channel(f"127.0.0.1:{address[1]}") as channel, pytest.raises(grpc.RpcError) as failure:
            rpc.KvmServiceStub(channel).Open(pb.OpenRequest(), timeout=2)
        assert failure.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        assert not records(daemon, "connect")


def test_a_flood_of_connections(site: Site) -> None:
    """Thousands that say nothing: few are held, none for long, and a few lines are written."""
    with remote_daemon(site.config("[limits]\nhandshake_timeout = 2"), [IMAGE.path.parent]) as (daemon, target):
        port, before = port_of(daemon), descriptors(daemon.process.pid)

        def flood(over: threading.Event) -> None:
            held: list[socket.socket] = []
            while not over.is_set() and len(held) < 1000:
                with contextlib.suppress(OSError):
                    held.append(socket.create_connection(("127.0.0.1", port), 1))
            for sock in held:
                sock.close()

        with under(flood, 3):
            assert pace(daemon.target) < 0.1
            assert descriptors(daemon.process.pid) < before + 100
        eventually(lambda: descriptors(daemon.process.pid) <= before + 12, 15)
        with site.connect(target) as client:
            client.open(IMAGE.path).close()
        assert len(records(daemon, "refused")) < 300


def test_a_flood_of_handshakes(site: Site) -> None:
    """Each with all the arithmetic, and no certificate at the end: local clients still get their turn."""
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, _):
        address = ("127.0.0.1", port_of(daemon))
        context = ssl.create_default_context(cafile=site.authority.ca)
        context.set_alpn_protocols(["h2"])
        shaken = [0]

        def shake(over: threading.Event) -> None:
            while not over.is_set():
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(address, 5) as plain,
                    context.wrap_socket(plain, server_hostname="localhost") as tls,
                ):
                    shaken[0] += 1
                    tls.recv(1)

        with under(shake, 4):
            assert pace(daemon.target) < 0.1
        assert shaken[0] > 20
        said(daemon, "peer did not return a certificate")


def test_who_sends_too_fast_is_read_from_later(site: Site) -> None:
    """Each certificate for itself; all that was sent comes in, and the answer is right."""
    limits = "[limits]\nreceived_bytes_per_second_per_uid = 65536"
    bob = site.authority.issue("bob")
    with (
        remote_daemon(site.config(limits), [IMAGE.path.parent]) as (_, target),
        site.connect(target) as client,
        site.connect(target, bob) as other,
        client.open(IMAGE.path) as kernel,
    ):
        began = time.monotonic()
        answers = kernel.readv([(BANNER, 1)] * 8000)  # some 110 KB to ask for them
        assert time.monotonic() - began > 1
        assert {each.data for each in answers} == {b"L"}
        began = time.monotonic()
        with pytest.raises(libkvm.AccessError):
            other.open(IMAGE.path)
        assert time.monotonic() - began < 1


def test_clients_that_stop_reading(site: Site) -> None:
    """Streams by the dozen that nobody reads hold up no one else."""
    files = [Path(site.keywords()[f"tls_{name}"]).read_bytes() for name in ("ca", "key", "cert")]
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target):
        credentials = grpc.ssl_channel_credentials(*files)
        with grpc.secure_channel(target, credentials) as channel:
            stub = rpc.KvmServiceStub(channel)
            descriptor = stub.Open(pb.OpenRequest(corefile=str(IMAGE.path))).descriptor
            request = memory_pb2.ReadStreamRequest(
                descriptor=descriptor, address=1 << 20, length=64 << 20, space=memory_pb2.ADDRESS_SPACE_PHYSICAL
            )
            stalled = [stub.ReadStream(request) for _ in range(24)]
            for each in stalled:
                assert next(each).data
            assert pace(daemon.target) < 0.1
            assert not any(each.done() for each in stalled)
            for each in stalled:
                each.cancel()


# --- sockets that systemd hands over

EXEC = """
import os, sys
for number, fd in enumerate(sys.argv[1].split(","), 3):
    os.dup2(int(fd), number)
    os.set_inheritable(number, True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(number - 2)}
os.execv(sys.executable, [sys.executable, "-m", "kvmd", *sys.argv[2:]])
"""


@pytest.fixture
def inherited(tmp_path: Path) -> Iterator[tuple[list[socket.socket], Callable[..., subprocess.Popen[str]]]]:
    """A Unix and a TCP socket, and what starts a daemon with them."""
    local = socket.socket(socket.AF_UNIX)
    local.bind(str(tmp_path / "public"))
    afar = socket.create_server(("127.0.0.1", 0))
    started: list[subprocess.Popen[str]] = []
    for sock in (local, afar):
        sock.listen()
        os.dup2(sock.fileno(), sock.fileno() + 200)  # out of the way of 3 and 4

    def start(config: str) -> subprocess.Popen[str]:
        (tmp_path / "kvmd.toml").write_text(config)
        fds = [sock.fileno() + 200 for sock in (local, afar)]
        words = ["--listen", f"unix:{tmp_path}/own", "--config", str(tmp_path / "kvmd.toml")]
        words += ["--dump-dir", os.path.realpath(IMAGE.path.parent)]
        command = [sys.executable, "-c", EXEC, ",".join(map(str, fds)), *words]
        started.append(subprocess.Popen(command, pass_fds=fds, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield [local, afar], start
    for process in started:
        process.kill()
        process.communicate()
    for sock in (local, afar):
        os.close(sock.fileno() + 200)
        sock.close()


def test_a_port_that_is_handed_over(site: Site, inherited: tuple) -> None:
    (local, afar), start = inherited
    process = start(site.config().replace('tcp = "127.0.0.1:0"\n', ""))
    assert any("ready on" in process.stderr.readline() for _ in range(2))  # or first what workers run with
    with site.connect(f"dns:///localhost:{afar.getsockname()[1]}") as client, client.open(IMAGE.path) as kernel:
        assert kernel.read(BANNER, 5) == b"Linux"
    with libkvm.connect(f"unix:{local.getsockname()}") as client:
        client.open(IMAGE.path).close()
    process.terminate()
    process.stderr.read()
    assert process.wait(20) == 0


def test_a_port_without_certificates(inherited: tuple) -> None:
    _, start = inherited
    process = start("")
    said = process.stderr.read()
    assert process.wait(20) == 1
    assert "a TCP socket was handed over, but [listen] has no tls_cert" in said


def test_descriptors_of_the_test_suffice() -> None:
    """Or the floods above were none."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 1024
