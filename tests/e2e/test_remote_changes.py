"""Clients of other hosts, when certificates, policy or links change; and what the lease keeps for them."""

from __future__ import annotations

import contextlib
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

import libkvm
import libkvm.aio
from authority import Pair
from daemon import Daemon
from kvmd.v1 import kvm_service_pb2 as pb
from kvmd.v1 import kvm_service_pb2_grpc as rpc
from kvmd.v1 import memory_pb2
from libkvm.errors import Reason
from remote import BANNER, IMAGE, RULE, Site, eventually, port_of, records, remote_daemon, said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("other"))


def test_a_revoked_certificate_ends_its_connection(site: Site) -> None:
    """At once for who is connected, too; others don't notice."""
    carol, dave = site.authority.issue("carol"), site.authority.issue("dave")
    rules = RULE.format("carol") + RULE.format("dave")
    with remote_daemon(site.config(rules=rules, crl=True), [IMAGE.path.parent]) as (daemon, target):
        with site.connect(target, carol) as revoked, site.connect(target, dave) as kept:
            kernel, still = revoked.open(IMAGE.path), kept.open(IMAGE.path)

            def opened() -> list[object]:
                return [line["address"] for line in records(daemon, "open") if line["peer"] == "cert:dave"]

            eventually(opened)  # what the daemon has written is read by a thread of its own here
            before = opened()
            site.authority.crl(carol.serial)
            said(daemon, "certificate revoked (cert:carol): its connection is closed")
            with pytest.raises(libkvm.AccessError, match="certificate revoked") as failure:
                kernel.read(BANNER, 8)
            assert failure.value.reason is Reason.BAD_CERTIFICATE
            assert still.read(BANNER, 8)
            with kept.open(IMAGE.path):
                eventually(lambda: len(opened()) == 2)
            assert set(opened()) == set(before)  # over the connection that it had
        # A new certificate for the same name is as good as any.
        with site.connect(target, site.authority.issue("carol2", "carol")) as client:
            client.open(IMAGE.path).close()


def test_a_certificate_that_expires_ends_its_connection(site: Site) -> None:
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target):
        short = site.authority.issue("short", "alice", days=(-1, 6 / 86400))
        with site.connect(target, short) as client:
            kernel = client.open(IMAGE.path)
            said(daemon, "certificate has expired (cert:alice)", 15)
            with pytest.raises(libkvm.AccessError, match="certificate expired"):
                kernel.read(BANNER, 8)


def shown(daemon: Daemon) -> str:
    """The certificate that the server shows, by openssl."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port_of(daemon)}", "-alpn", "h2", "-showcerts"]
    return subprocess.run(command, input="", capture_output=True, text=True).stdout


def test_a_rotated_certificate_is_taken_up(site: Site, tmp_path: Path) -> None:
    """Without a signal, and without ending anybody's connection."""
    first, second = site.authority.server("rotated"), site.authority.server("next")
    config = site.config().replace(site.server.cert, first.cert).replace(site.server.key, first.key)
    with remote_daemon(config, [IMAGE.path.parent]) as (daemon, target), site.connect(target) as client:
        kernel = client.open(IMAGE.path)
        before = shown(daemon)
        Path(first.cert).write_text(Path(second.cert).read_text())
        said(daemon, "the certificates stay as they were")  # the key does not fit yet
        assert shown(daemon).partition("-----BEGIN")[2][:500] == before.partition("-----BEGIN")[2][:500]
        Path(first.key).write_text(Path(second.key).read_text())
        said(daemon, "certificates read again")
        assert Path(second.cert).read_text().strip() in shown(daemon)
        assert kernel.read(BANNER, 8)
        assert not records(daemon, "close")


def test_another_authority_ends_connections(site: Site, other: Site, tmp_path: Path) -> None:
    authorities = tmp_path / "authorities"
    authorities.write_text(Path(site.authority.ca).read_text())
    config = site.config().replace(f'tls_client_ca = "{site.authority.ca}"', f'tls_client_ca = "{authorities}"')
    with remote_daemon(config, [IMAGE.path.parent]) as (daemon, target), site.connect(target) as client:
        kernel = client.open(IMAGE.path)
        authorities.write_text(Path(other.authority.ca).read_text())
        said(daemon, "tls_client_ca has changed")
        with pytest.raises(libkvm.AccessError):
            kernel.read(BANNER, 8)
        with libkvm.connect(target, **{**other.keywords(), "tls_ca": site.authority.ca}) as theirs:
            theirs.open(IMAGE.path).close()


def test_a_reload_reads_certificates_and_policy(site: Site) -> None:
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target), site.connect(target) as client:
        kernel = client.open(IMAGE.path)
        settings = Path(daemon.target.removeprefix("unix:")).parent / "kvmd.toml"
        settings.write_text(settings.read_text().replace('["*"]', '["info"]'))
        daemon.process.send_signal(signal.SIGHUP)
        said(daemon, "certificates read again")
        with pytest.raises(libkvm.AccessError, match=r"does not allow cert:alice to read \(default\)"):
            kernel.read(BANNER, 8)


# --- the lease


@contextlib.contextmanager
def wire(site: Site, target: str, pair: Pair | None = None) -> Iterator[rpc.KvmServiceStub]:
    """A connection and nothing around it: when it goes, nothing is closed by the client."""
    ca, cert, key = (Path(name).read_bytes() for name in site.keywords(pair).values())
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, cert), options) as channel:
        yield rpc.KvmServiceStub(channel)


def opened(stub: rpc.KvmServiceStub) -> str:
    return stub.Open(pb.OpenRequest(corefile=str(IMAGE.path))).descriptor


def read(stub: rpc.KvmServiceStub, descriptor: str) -> bytes:
    return stub.Read(memory_pb2.ReadRequest(descriptor=descriptor, address=BANNER, length=13)).data


def test_a_descriptor_outlives_its_connection(site: Site) -> None:
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target):
        with wire(site, target) as stub:
            descriptor = opened(stub)
        with wire(site, target) as stub:
            assert read(stub, descriptor) == b"Linux version"
        assert not records(daemon, "close")


def test_a_strangers_descriptor_is_unknown(site: Site) -> None:
    """While its owner is there, and during the lease."""
    rules = RULE.format("alice") + RULE.format("bob")
    bob = site.authority.issue("bob")
    with remote_daemon(site.config(rules=rules), [IMAGE.path.parent]) as (_, target):
        with wire(site, target, bob) as stranger:
            with wire(site, target) as owner:
                descriptor = opened(owner)
                with pytest.raises(grpc.RpcError) as there:
                    read(stranger, descriptor)
            with pytest.raises(grpc.RpcError) as left:
                read(stranger, descriptor)
            with pytest.raises(grpc.RpcError) as never:
                read(stranger, "made-up")
        answers = [(each.value.code(), each.value.details()) for each in (there, left, never)]
        assert answers == [(grpc.StatusCode.NOT_FOUND, answers[0][1])] * 3


def test_the_lease_runs_out(site: Site) -> None:
    config = site.config("[limits]\nlease = 1")
    with remote_daemon(config, [IMAGE.path.parent]) as (daemon, target):
        with wire(site, target) as stub:
            descriptor = opened(stub)
        assert not records(daemon, "close")
        eventually(lambda: len(records(daemon, "close")) == 1)
        with wire(site, target) as stub, pytest.raises(grpc.RpcError, match="no such descriptor"):
            read(stub, descriptor)


def test_who_takes_it_up_keeps_it(site: Site) -> None:
    """The lease of the old connection no longer counts."""
    config = site.config("[limits]\nlease = 1")
    with remote_daemon(config, [IMAGE.path.parent]) as (_, target):
        with wire(site, target) as stub:
            descriptor = opened(stub)
        with wire(site, target) as stub:
            assert read(stub, descriptor)
            time.sleep(2)
            assert read(stub, descriptor)


def test_no_lease_at_all_and_none_at_the_end(site: Site) -> None:
    with remote_daemon(site.config("[limits]\nlease = 0"), [IMAGE.path.parent]) as (daemon, target):
        with wire(site, target) as stub:
            opened(stub)
        eventually(lambda: len(records(daemon, "close")) == 1)
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target), wire(site, target) as stub:
        opened(stub)
    assert len(records(daemon, "close")) == 1


@contextlib.contextmanager
def cable(port: int) -> Iterator[tuple[int, Callable[[], None]]]:
    """A way to a port that can be cut: its own port, and what cuts all that goes through it."""
    ends: list[socket.socket] = []

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near = door.accept()[0]
                far = socket.create_connection(("127.0.0.1", port))
                ends.extend((near, far))
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    def cut() -> None:
        while ends:
            end = ends.pop()
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    with socket.create_server(("127.0.0.1", 0)) as door:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield door.getsockname()[1], cut
        finally:
            cut()
            door.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_kernel_survives_a_broken_link(site: Site) -> None:
    """The same Kernel object reads on over a new connection, which gRPC makes by itself."""
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (daemon, target):
        port = int(target.rpartition(":")[2])
        with (
            cable(port) as (near, cut),
            site.connect(f"dns:///localhost:{near}") as client,
            client.open(IMAGE.path) as kernel,
        ):
            for _ in range(3):
                assert kernel.read(BANNER, 13) == b"Linux version"
                cut()
                eventually(lambda: reads(kernel))
        peers = {line["address"] for line in records(daemon, "open") + records(daemon, "close")}
        assert len(peers) == 2  # opened over one, closed over another


def reads(kernel: libkvm.Kernel) -> bool:
    try:
        return kernel.read(BANNER, 13) == b"Linux version"
    except libkvm.UnavailableError:
        return False
