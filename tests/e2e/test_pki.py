"""``kvmctl pki``: what it makes serves a daemon and its clients, and openssl takes it as it is meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import libkvm
from remote import IMAGE, RULE, records, remote_daemon, said


def kvmctl(folder: Path, *words: str, status: int = 0, environ: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "libkvm", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, **(environ or {})})
    assert done.returncode == status, done.stderr
    return done.stderr if status else done.stdout


def openssl(folder: Path, *words: str, good: bool = True) -> str:
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, input="")
    assert (done.returncode == 0) == good, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    kvmctl(folder, "pki", "init")
    kvmctl(folder, "pki", "issue", "--server", "localhost", "--host", "127.0.0.1", "--host", "::1")
    kvmctl(folder, "pki", "issue", "alice")
    return folder


@pytest.fixture
def site(made: Path, tmp_path: Path) -> Path:
    """An authority ``pki``, with a server ``localhost`` and a client ``alice``."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


VERIFY = ("verify", "-x509_strict", "-crl_check", "-CAfile", "pki/ca.crt", "-CRLfile", "pki/ca.crl")


def test_openssl_verifies_it_by_the_letter(site: Path) -> None:
    openssl(site, *VERIFY, "-purpose", "sslserver", "-verify_hostname", "localhost", "pki/localhost.crt")
    openssl(site, *VERIFY, "-purpose", "sslserver", "-verify_ip", "127.0.0.1", "pki/localhost.crt")
    openssl(site, *VERIFY, "-purpose", "sslserver", "-verify_ip", "::1", "pki/localhost.crt")
    openssl(site, *VERIFY, "-purpose", "sslclient", "pki/alice.crt")


def test_openssl_sees_what_it_is_not_for(site: Path) -> None:
    for words in (
        ("-purpose", "sslclient", "pki/localhost.crt"),
        ("-purpose", "sslserver", "pki/alice.crt"),
        ("-purpose", "sslserver", "-verify_hostname", "other", "pki/localhost.crt"),
    ):
        openssl(site, *VERIFY, *words, good=False)


def test_openssl_sees_what_is_revoked(site: Path) -> None:
    serial = json.loads(kvmctl(site, "pki", "revoke", "alice", "--json"))["revoked"]
    assert "certificate revoked" in openssl(site, *VERIFY, "pki/alice.crt", good=False)
    openssl(site, *VERIFY, "pki/localhost.crt")
    text = openssl(site, "crl", "-in", "pki/ca.crl", "-noout", "-text", "-verify", "-CAfile", "pki/ca.crt")
    assert "verify OK" in text
    assert re.findall(r"Serial Number: (\w+)", text) == [
        each.upper().zfill(len(each) + len(each) % 2) for each in serial
    ]


def test_lifetimes(site: Path) -> None:
    year = 366 * 86400
    for name in ("localhost", "alice"):
        openssl(site, "x509", "-in", f"pki/{name}.crt", "-noout", "-checkend", str(year - 2 * 86400))
        openssl(site, "x509", "-in", f"pki/{name}.crt", "-noout", "-checkend", str(year), good=False)
    openssl(site, "x509", "-in", "pki/ca.crt", "-noout", "-checkend", str(9 * year))
    kvmctl(site, "pki", "issue", "brief", "--days", "1")
    openssl(site, "x509", "-in", "pki/brief.crt", "-noout", "-checkend", str(2 * 86400), good=False)
    for days in ("0", "-1", "100000"):
        assert "days" in kvmctl(site, "pki", "issue", "x", f"--days={days}", status=1)


def test_keys_are_private_and_pairs(site: Path) -> None:
    assert stat.S_IMODE((site / "pki").stat().st_mode) == 0o700
    for name in ("ca", "localhost", "alice"):
        assert stat.S_IMODE((site / f"pki/{name}.key").stat().st_mode) == 0o600
        public = openssl(site, "pkey", "-in", f"pki/{name}.key", "-pubout")
        assert public == openssl(site, "x509", "-in", f"pki/{name}.crt", "-noout", "-pubkey")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_overwritten(site: Path) -> None:
    before = contents(site)
    for words in (("init",), ("issue", "alice"), ("issue", "--server", "localhost")):
        assert "there is one already" in kvmctl(site, "pki", *words, status=1)
    assert contents(site) == before


def test_renewal_is_asked_for(site: Path) -> None:
    """The old certificate stays valid, and can be revoked by its number."""
    old = site / "old.crt"
    old.write_bytes((site / "pki/alice.crt").read_bytes())
    kvmctl(site, "pki", "issue", "alice", "--renew")
    assert old.read_bytes() != (site / "pki/alice.crt").read_bytes()
    openssl(site, *VERIFY, "old.crt", "pki/alice.crt")
    serial = openssl(site, "x509", "-in", "old.crt", "-noout", "-serial").strip().partition("=")[2]
    kvmctl(site, "pki", "revoke", "--serial", serial)
    openssl(site, *VERIFY, "pki/alice.crt")
    openssl(site, *VERIFY, "old.crt", good=False)
    kvmctl(site, "pki", "revoke", "alice")
    openssl(site, *VERIFY, "pki/alice.crt", good=False)


def test_revoking_nothing_renews_the_list(site: Path) -> None:
    before = (site / "pki/ca.crl").read_bytes()
    kvmctl(site, "pki", "revoke", "alice")
    kvmctl(site, "pki", "revoke")
    assert (site / "pki/ca.crl").read_bytes() != before
    openssl(site, *VERIFY, "pki/alice.crt", good=False)
    assert "no certificate of bob" in kvmctl(site, "pki", "revoke", "bob", status=1)


@pytest.mark.parametrize(
    "name", ["", "ca", "CA", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "é", "x" * 65, "uid:0", "a\x00"]
)
def test_names_of_clients(site: Path, name: str) -> None:
    from libkvm.cli.authority import Authority

    before = contents(site)
    with Authority(str(site / "pki")) as authority, pytest.raises(libkvm.RequestError):
        authority.issue(name)
    assert contents(site) == before


@pytest.mark.parametrize("name", ["", "ca", "a_b", "-a.example", "a..b", "x" * 64 + ".example", "a/b", "1.2.3.4/8"])
def test_names_of_servers(site: Path, name: str) -> None:
    from libkvm.cli.authority import Authority

    with Authority(str(site / "pki")) as authority:
        with pytest.raises(libkvm.RequestError):
            authority.issue(name, hosts=[])
        if name != "ca":
            with pytest.raises(libkvm.RequestError):
                authority.issue("good", hosts=[name])


def test_a_folder_that_is_no_authority(tmp_path: Path) -> None:
    for words in (("issue", "x"), ("revoke",)):
        assert "kvmctl pki init makes one" in kvmctl(tmp_path, "pki", *words, status=1)
    assert "No such file" in kvmctl(tmp_path, "pki", "init", "--dir", "none/at/all", status=1)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "ca.crl"])
def test_a_damaged_authority_is_said_so(site: Path, name: str) -> None:
    (site / "pki" / name).write_text("noise")
    assert f"pki/{name}" in kvmctl(site, "pki", "issue", "bob", status=1)


def test_a_key_of_another_authority(site: Path) -> None:
    kvmctl(site, "pki", "init", "--dir", "other")
    (site / "pki/ca.key").write_bytes((site / "other/ca.key").read_bytes())
    assert "not the key of" in kvmctl(site, "pki", "issue", "bob", status=1)


def test_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ImportError")
    said = kvmctl(tmp_path, "pki", "init", status=1, environ={"PYTHONPATH": str(tmp_path)})
    assert said == "kvmctl: kvmctl pki needs: pip install 'libkvm[pki]'\n"


def config(site: Path) -> str:
    lines = f"""
    [listen]
    tcp = "127.0.0.1:0"
    tls_cert = "{site}/pki/localhost.crt"
    tls_key = "{site}/pki/localhost.key"
    tls_client_ca = "{site}/pki/ca.crt"
    tls_client_crl = "{site}/pki/ca.crl"
    """
    return textwrap.dedent(lines) + RULE.format("alice")


def test_it_serves_a_daemon_and_its_clients(site: Path) -> None:
    """From nothing to a dump on another host, and to the end of a certificate, by commands alone."""
    with remote_daemon(config(site), [IMAGE.path.parent]) as (daemon, target):
        environ = {"KVMD_TARGET": target, "KVMD_TLS_CA": "pki/ca.crt"}
        environ |= {"KVMD_TLS_CERT": "pki/alice.crt", "KVMD_TLS_KEY": "pki/alice.key"}
        words = ("info", "-M", str(IMAGE.path))
        assert IMAGE.truth["release"] in kvmctl(site, *words, environ=environ)
        kvmctl(site, "pki", "revoke", "alice")
        said(daemon, "certificates read again; 1 revoked")
        failure = kvmctl(site, *words, status=1, environ=environ)
        assert failure.startswith("kvmctl: no connection with the kvmd on dns:///localhost:")
        assert failure.endswith("it does not accept this client's certificate: certificate revoked\n")
        assert any("revoked" in str(line["why"]) for line in records(daemon, "refused"))
        kvmctl(site, "pki", "issue", "alice", "--renew")
        assert IMAGE.truth["release"] in kvmctl(site, *words, environ=environ)


def s_client(site: Path, target: str, *words: str) -> str:
    where = target.removeprefix("dns:///")
    command = ["openssl", "s_client", "-connect", where, "-CAfile", "pki/ca.crt", "-verify_return_error", *words]
    done = subprocess.run(command, cwd=site, input="", capture_output=True, text=True, timeout=20)
    return done.stdout + done.stderr


def test_openssl_as_a_client(site: Path) -> None:
    alice = ("-cert", "pki/alice.crt", "-key", "pki/alice.key")
    with remote_daemon(config(site), [IMAGE.path.parent]) as (daemon, target):
        good = s_client(site, target, *alice, "-alpn", "h2")
        assert "Verify return code: 0 (ok)" in good
        assert "TLSv1.3" in good
        assert "ALPN protocol: h2" in good
        assert "alert" not in good
        assert "alert protocol version" in s_client(site, target, *alice, "-alpn", "h2", "-tls1_2")
        assert said(daemon, "unsupported protocol")
        s_client(site, target, *alice, "-alpn", "http/1.1")
        assert said(daemon, "does not offer the protocol h2")
        s_client(site, target, "-alpn", "h2")
        assert said(daemon, "did not return a certificate")


def test_a_session_is_not_resumed(site: Path) -> None:
    """Who comes back shows the certificate again."""
    alice = ("-cert", "pki/alice.crt", "-key", "pki/alice.key", "-alpn", "h2")
    with remote_daemon(config(site), [IMAGE.path.parent]) as (_, target):
        assert "New Session Ticket arrived" not in s_client(site, target, *alice, "-sess_out", "session", "-trace")
        assert "Reused" not in s_client(site, target, *alice)


def test_a_self_signed_certificate_of_openssl(site: Path) -> None:
    make = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=alice"]
    openssl(site, *make, "-keyout", "self.key", "-out", "self.crt")
    with remote_daemon(config(site), [IMAGE.path.parent]) as (daemon, target):
        s_client(site, target, "-cert", "self.crt", "-key", "self.key", "-alpn", "h2")
        assert said(daemon, "certificate verify failed: self-signed certificate")
