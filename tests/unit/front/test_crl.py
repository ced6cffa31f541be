"""Serial numbers of revocation lists, against lists that the cryptography library and openssl make."""

from __future__ import annotations

import base64
import contextlib
import datetime
import functools
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmd.front.crl import CrlError, revoked_serials

THEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SERIALS = st.integers(1, 2**159 - 1)


@functools.cache
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def crl(serials: list[int], *, reasons: bool = False, year: int = 2027) -> bytes:
    builder = x509.CertificateRevocationListBuilder().last_update(THEN)
    builder = builder.next_update(datetime.datetime(year, 1, 1, tzinfo=datetime.UTC))
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority")]))
    if reasons:
        builder = builder.add_extension(x509.CRLNumber(7), critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(THEN)
        if reasons:
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def pem(der: bytes) -> bytes:
    return b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(SERIALS, unique=True, max_size=20), st.booleans(), st.sampled_from([2027, 2060]))
def test_what_is_revoked_is_found(serials, reasons, year):
    """Whether times are UTCTime or (from 2050 on) GeneralizedTime."""
    assert revoked_serials(crl(serials, reasons=reasons, year=year)) == set(serials)


def test_several_lists_in_a_file_and_text_around_them():
    both = b"# one\n" + crl([5]) + b"Certificate Revocation List (CRL):\n" + crl([2**150, 6])
    assert revoked_serials(both) == {5, 6, 2**150}


def test_a_list_of_thousands():
    assert revoked_serials(crl(list(range(1, 5001)))) == set(range(1, 5001))


def test_a_list_of_openssl(tmp_path):
    """Version 1, without nextUpdate's neighbours, is what ``openssl ca`` writes by default."""
    (tmp_path / "index.txt").write_text("R\t270101000000Z\t260101000000Z\tAB12\tunknown\t/CN=x\n")
    (tmp_path / "ca.cnf").write_text(f"[ca]\ndefault_ca=a\n[a]\ndatabase={tmp_path}/index.txt\ndefault_md=sha256\n")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    made += ["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    command = ["openssl", "ca", "-gencrl", "-config", "ca.cnf", "-keyfile", "ca.key", "-cert", "ca.crt"]
    command += ["-crldays", "30", "-out", "ca.crl"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert revoked_serials((tmp_path / "ca.crl").read_bytes()) == {0xAB12}


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"no PEM",
        b"-----BEGIN X509 CRL-----\nAAAA",
        b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----",
        pem(b""),
        pem(b"\x30"),
        pem(b"\x30\x05\x00"),
        pem(b"\x30\x80\x00\x00"),
        pem(b"\x30\x85\x00\x00\x00\x00\x01\x00"),
        pem(b"\x31\x02\x30\x00"),
        pem(b"\x30\x02\x30\x00"),
        crl([1]) + b"-----BEGIN X509 CRL-----\n",
    ],
)
def test_what_is_no_list(wrong):
    with pytest.raises(CrlError):
        revoked_serials(wrong)


@functools.cache
def good() -> bytes:
    return x509.load_pem_x509_crl(crl([3, 2**90])).public_bytes(serialization.Encoding.DER)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_list_is_an_error_or_a_list(data):
    der = bytearray(good())
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(der))))
    try:
        found = revoked_serials(pem(bytes(der[:cut])))
    except CrlError:
        return
    assert all(isinstance(serial, int) for serial in found)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_an_error_or_a_list(der):
    with contextlib.suppress(CrlError):
        revoked_serials(pem(der))
