"""Clients of other hosts: who is let in, who is not, and what both sides say of it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import libkvm
import libkvm.aio
from authority import Authority
from daemon import Daemon
from libkvm.errors import Reason
from remote import BANNER, IMAGE, Site, records, refusal, remote_daemon, said


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.made(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def served(site: Site) -> Iterator[tuple[Daemon, str]]:
    site.authority.crl()
    with remote_daemon(site.config(crl=True), [IMAGE.path.parent]) as both:
        yield both


# --- who is let in


def test_a_certificate_is_an_identity(site: Site, served: tuple[Daemon, str]) -> None:
    daemon, target = served
    with site.connect(target) as client, client.open(IMAGE.path) as kernel:
        assert kernel.read(BANNER, 13) == b"Linux version"
    opened = next(line for line in records(daemon, "open") if line["peer"] == "cert:alice")
    assert opened["serial"] == f"{site.alice.serial:x}"
    assert str(opened["address"]).startswith("127.0.0.1:")
    assert opened["status"] == "OK"
    assert "uid" not in json.dumps(opened)


def test_the_policy_knows_it_by_name(site: Site, served: tuple[Daemon, str]) -> None:
    bob = site.authority.issue("bob")
    failure = refusal(site.connect(served[1], bob))
    assert failure.reason is Reason.POLICY_DENIED
    assert failure.metadata["rule"] == "default"
    assert "cert:bob" in failure.message


@pytest.mark.parametrize("entry", ["DNS:alice", "email:alice", "URI:alice"])
def test_without_a_common_name_the_only_alternative_counts(site: Site, served: tuple[Daemon, str], entry: str) -> None:
    pair = site.authority.issue("san", "", alternatives=[entry])
    with site.connect(served[1], pair) as client:
        client.open(IMAGE.path).close()


def test_a_name_that_looks_like_another_kind_of_subject_is_only_a_name(site: Site) -> None:
    """No rule for a uid, not even root's own, speaks of who came with a certificate."""
    rules = '[[policy]]\nsubjects = ["uid:0", "uid:65534", "gid:65534", "self"]\nimages = ["dump:*"]\nverbs = ["*"]\n'
    with remote_daemon(site.config(rules=rules), [IMAGE.path.parent]) as (_, target):
        for name in ("uid:0", "root", "self", "cert:alice"):
            assert refusal(site.connect(target, site.authority.issue("odd", name))).reason is Reason.POLICY_DENIED


def test_asyncio_twin(site: Site, served: tuple[Daemon, str]) -> None:
    async def use() -> bytes:
        connected = libkvm.aio.connect(served[1], **site.keywords())
        async with connected as client, client.open(IMAGE.path) as kernel:
            return await kernel.read(BANNER, 13)

    assert asyncio.run(use()) == b"Linux version"


# --- who is not, and what both sides say of it


def cases(site: Site, other: Site) -> dict[str, tuple[object, str, str]]:
    """A client's certificate, what the client's error says, and what the daemon's log does."""
    issue = site.authority.issue
    return {
        "expired": (issue("c1", "alice", days=(-3, -1)), "certificate expired", "has expired"),
        "not yet valid": (issue("c2", "alice", days=(1, 3)), "bad certificate", "not yet valid"),
        "another authority": (other.alice, "client's certificate", "certificate verify failed"),
        "a server's": (site.server, "unsupported certificate", "unsuitable certificate purpose"),
        "two names": (issue("c3", "alice", "bob"), "closed the connection", "2 names"),
        "no name": (issue("c4", ""), "closed the connection", "0 names"),
        "two alternatives": (issue("c5", "", alternatives=["DNS:alice", "DNS:b"]), "closed the", "2 names"),
        "control characters": (issue("c6", "alice\n"), "closed the connection", "control characters"),
        "huge": (issue("c7", "alice", padding=120_000), "illegal parameter", "excessive message size"),
    }


NAMES = [
    "expired", "not yet valid", "another authority", "a server's", "two names", "no name", "two alternatives",
    "control characters", "huge",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_refused(site: Site, other: Site, served: tuple[Daemon, str], name: str) -> None:
    daemon, target = served
    pair, here, there = cases(site, other)[name]
    failure = refusal(site.connect(target, pair))
    assert failure.reason in {Reason.BAD_CERTIFICATE, Reason.UNREACHABLE}
    assert here in failure.message
    assert said(daemon, there)
    assert any(there in str(line["why"]) for line in records(daemon, "refused"))


def test_the_wrong_authority_for_the_server(site: Site, other: Site, served: tuple[Daemon, str]) -> None:
    failure = refusal(libkvm.connect(served[1], **{**site.keywords(), "tls_ca": other.authority.ca}))
    assert failure.reason is Reason.BAD_CERTIFICATE
    assert "its certificate is not accepted here" in failure.message


def test_the_wrong_name_of_the_server(site: Site, served: tuple[Daemon, str]) -> None:
    failure = refusal(site.connect(served[1].replace("localhost", "127.0.0.1")))
    assert failure.reason is Reason.BAD_CERTIFICATE
    assert "not valid for '127.0.0.1'" in failure.message


def test_nobody_listens(site: Site) -> None:
    failure = refusal(site.connect("dns:///localhost:1"))
    assert failure.reason is Reason.UNREACHABLE
    assert "nothing listens there" in failure.message


def test_the_asyncio_twin_says_the_same(site: Site, other: Site, served: tuple[Daemon, str]) -> None:
    async def use() -> None:
        async with libkvm.aio.connect(served[1], **{**site.keywords(), "tls_ca": other.authority.ca}) as client:
            await client.open(IMAGE.path)

    with pytest.raises(libkvm.AccessError, match="its certificate is not accepted here"):
        asyncio.run(use())


def test_what_is_wrong_with_the_files_is_said_at_once(
    site: Site, other: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in site.keywords():  # which other tests of this process may have set
        monkeypatch.delenv(f"KVMD_{key.upper()}", raising=False)
    target, good = "dns:///localhost:1", site.keywords()
    for words, match in (
        ({**good, "tls_key": other.alice.key}, "key values mismatch"),
        ({**good, "tls_cert": str(tmp_path / "none")}, "none: No such file"),
        ({**good, "tls_ca": site.alice.key}, "no certificate in it"),
        ({"tls_ca": site.authority.ca}, "KVMD_TLS_CERT"),
    ):
        with pytest.raises(libkvm.RequestError, match=match):
            libkvm.connect(target, **words)
    for wrong in ("dns:///localhost", "dns:///:1", "dns:localhost:1", "dns:///h:99999", "tcp:h:1"):
        with pytest.raises(libkvm.RequestError, match="is not of the form"):
            libkvm.connect(wrong, **good)


def test_the_environment_names_certificates(site: Site, served: tuple[Daemon, str]) -> None:
    environ = {f"KVMD_{key.upper()}": value for key, value in site.keywords().items()}
    command = [sys.executable, "-m", "libkvm", "--json", "info", "-M", str(IMAGE.path)]
    done = subprocess.run(command, env={**environ, "KVMD_TARGET": served[1]}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["release"]
    words = [f"--{key.replace('_', '-')}={value}" for key, value in site.keywords().items()]
    done = subprocess.run([*command[:3], "--target", served[1], *words, *command[4:]], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# --- no TCP without TLS


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ('tcp = "127.0.0.1:0"', "listen.tls_cert: is missing"),
        ('tcp = "localhost:1"', "is not ADDRESS:PORT"),
        ('tcp = "::1:1"', "is not ADDRESS:PORT"),
        ('tcp = "127.0.0.1:x"', "is not ADDRESS:PORT"),
        ('tls_cert = "/x"', "listen.tls_key: is missing"),
        ('tls_client_crl = "/x"', "listen.tls_cert: is missing"),
        ('tcp = "[::1]:1"\ntls_cert = "x"\ntls_key = "/x"\ntls_client_ca = "/x"', "tls_cert: 'x' is not an absolute"),
        ('tcp = "[::1]:1"\ntls_cert = "/x"\ntls_key = "/none"\ntls_client_ca = "/x"', "tls_key /none: No such file"),
    ],
)
def test_configuration_that_would_be_less(tmp_path: Path, lines: str, match: str) -> None:
    file = tmp_path / "kvmd.toml"
    file.write_text(f"[listen]\n{lines}\n")
    command = [sys.executable, "-m", "kvmd", "--config", str(file), "--check-config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert match in done.stderr


def test_an_authority_of_clients_is_no_more_than_that(tmp_path: Path) -> None:
    """The client's authority may be another than the server's."""
    clients, servers = Authority(tmp_path / "clients"), Authority(tmp_path / "servers", "servers")
    site = Site(clients, servers.server(), clients.issue("alice"))
    with remote_daemon(site.config(), [IMAGE.path.parent]) as (_, target):
        with libkvm.connect(target, **{**site.keywords(), "tls_ca": servers.ca}) as client:
            client.open(IMAGE.path).close()
        pair = servers.issue("alice")
        assert refusal(libkvm.connect(target, **{**site.keywords(pair), "tls_ca": servers.ca}))


def test_doctor_of_another_host(site: Site, other: Site, served: tuple[Daemon, str]) -> None:
    """It opens the running kernel as any client would, and says what stands in the way."""
    command = [sys.executable, "-m", "libkvm", "--target", served[1], "doctor"]
    for keywords, told in (
        (site.keywords(), "POLICY_DENIED"),
        ({**site.keywords(), "tls_ca": other.authority.ca}, "BAD_CERTIFICATE"),
    ):
        words = [f"--{key.replace('_', '-')}={value}" for key, value in keywords.items()]
        done = subprocess.run([*command, *words], capture_output=True, text=True)
        assert done.returncode == 1
        assert told in done.stdout
