"""The files of the TLS listener: what is refused, and what is said of it."""

from __future__ import annotations

import os
import ssl
import subprocess
from pathlib import Path

import pytest

from authority import Authority
from kvmd.front.certificates import CertificateError, TlsFiles, load


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "authority")


@pytest.fixture
def files(authority):
    server = authority.server()
    return TlsFiles(server.cert, server.key, authority.ca, authority.crl(17, 18))


def test_good_files(files):
    trust = load(files)
    assert trust.revoked == {17, 18}
    assert trust.context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert trust.context.verify_mode is ssl.CERT_REQUIRED
    assert trust.context.num_tickets == 0
    assert trust.context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def test_a_list_is_no_must(files):
    trust = load(files._replace(client_crl=""))
    assert trust.revoked == frozenset()
    assert not trust.context.verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


def test_versions_follow_the_files(files, authority):
    before = files.versions()
    assert files.versions() == before
    authority.crl(17)
    assert files.versions() != before


@pytest.mark.parametrize("name", ["cert", "key", "client_ca", "client_crl"])
def test_a_file_that_is_not_there(files, name):
    wrong = files._replace(**{name: "/none"})
    for look in (lambda: load(wrong), wrong.versions):
        with pytest.raises(CertificateError, match=r"/none.*No such file"):
            look()


@pytest.mark.parametrize("name", ["cert", "key", "client_ca", "client_crl"])
def test_a_file_of_something_else(files, name, tmp_path):
    odd = tmp_path / "odd"
    odd.write_text("this is a text file")
    odd.chmod(0o600)
    with pytest.raises(CertificateError, match=str(odd)):
        load(files._replace(**{name: str(odd)}))


def test_a_key_of_another_certificate(files, authority):
    with pytest.raises(CertificateError, match="key values mismatch"):
        load(files._replace(key=authority.issue("other").key))


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o666])
def test_a_key_that_everybody_may_read(files, mode):
    os.chmod(files.key, mode)
    with pytest.raises(CertificateError, match="everybody may read it"):
        load(files)


def test_an_encrypted_key_asks_nobody(files, tmp_path):
    """On the terminal, for one."""
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", files.key, "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    locked.chmod(0o600)
    with pytest.raises(CertificateError, match=str(locked)):
        load(files._replace(key=str(locked)))


def test_a_client_is_no_authority(files, authority):
    with pytest.raises(CertificateError, match="no certificate of an authority"):
        load(files._replace(client_ca=authority.issue("alice").cert))


def test_the_list_names_no_authority(files, authority, tmp_path):
    """Or who may write the list could let anybody in."""
    other = Authority(tmp_path / "other")
    mixed = tmp_path / "mixed"
    mixed.write_bytes(Path(files.client_crl).read_bytes() + Path(other.ca).read_bytes())
    with pytest.raises(CertificateError, match="there are certificates in it"):
        load(files._replace(client_crl=str(mixed)))
