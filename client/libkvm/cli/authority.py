"""An authority in a folder: its own certificate and key, its revocation list, and what it has issued.

    ca.crt ca.key ca.crl        the authority
    NAME.crt NAME.key           the latest that was issued to NAME
    issued/SERIAL.crt           every certificate, so that each can be revoked

Needs the cryptography library. Nothing is ever overwritten but the revocation list, and what ``renew`` says.
Profile: RFC 5280; keys are ECDSA P-256.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import ipaddress
import os
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from libkvm.errors import KvmError, Reason, error

CA_DAYS = 3650
DAYS = 365
CRL_DAYS = 365
"""A revocation list that has run out lets nobody in; each issue and revocation makes a new one."""
_SKEW = datetime.timedelta(minutes=5)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


@dataclass(frozen=True, slots=True)
class Issued:
    """What was issued."""

    name: str
    serial: str
    expires: str
    certificate: str
    key: str


class Authority:
    """The authority in a folder; a context manager, which keeps others from changing it meanwhile."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> Self:
        self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @classmethod
    def init(cls, folder: str, name: str | None, days: int = CA_DAYS) -> Authority:
        """Make an authority.

        :raises RequestError: there is one already, or the name can't be used.
        """
        name = name or f"kvmd authority of {socket.gethostname()}"[:64]
        if not 1 <= len(name) <= 64 or not name.isprintable():
            raise error(Reason.BAD_ARGUMENT, f"{name!r} is no name for an authority: 1 to 64 printable characters")
        for each in (folder, os.path.join(folder, "issued")):
            with _trouble(Path(each)), contextlib.suppress(FileExistsError):
                os.mkdir(each, 0o700)
        with cls(folder) as made:
            made._vacant("ca.key", "ca.crt", "ca.crl")
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            builder = _builder(subject, subject, key, key.public_key(), days)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
            made._write_new("ca.key", _pem(key), 0o600)
            made._write_new("ca.crt", builder.sign(key, hashes.SHA256()).public_bytes(_PEM), 0o644)
            made._write_list([])
            return made

    def issue(self, name: str, *, hosts: Sequence[str] | None = None, days: int = DAYS, renew: bool = False) -> Issued:
        """Issue a certificate to a client, or to a server.

        :param hosts: further names and addresses of a server; None: it is for a client.
        :param renew: replace the files of the one that the name has; it stays valid.
        :raises RequestError: the name can't be used, or has a certificate.
        """
        file = _file(name, server=hosts is not None)
        if not renew:
            self._vacant(f"{file}.key", f"{file}.crt")
        certificate, signer = self._certificate(), self._key()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, certificate.subject, signer, key.public_key(), days, certificate)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([_purpose(hosts)]), critical=False)
        if hosts is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(_alternatives([name, *hosts])), critical=False)
        made = builder.sign(signer, hashes.SHA256())
        self._write_list(self._revoked())  # which also shows that the list can be written
        self._write_new(f"issued/{made.serial_number:x}.crt", made.public_bytes(_PEM), 0o644)
        write = self._replace if renew else self._write_new
        write(f"{file}.key", _pem(key), 0o600)
        write(f"{file}.crt", made.public_bytes(_PEM), 0o644)
        places = (str(self.folder / f"{file}.{end}") for end in ("crt", "key"))
        return Issued(name, f"{made.serial_number:x}", made.not_valid_after_utc.isoformat(), *places)

    def revoke(self, names: Iterable[str], serials: Iterable[str]) -> list[str]:
        """Revoke all certificates of these names and those of these serial numbers, and make a new list.

        :return: the serial numbers that are newly on it.
        :raises RequestError: there is no such certificate.
        """
        wanted = {serial.lower().lstrip("0"): False for serial in serials} | dict.fromkeys(names, False)
        revoked = self._revoked()
        known, added = {entry.serial_number for entry in revoked}, list[str]()
        for path in sorted((self.folder / "issued").glob("*.crt")):
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            hits = {f"{certificate.serial_number:x}", _common_name(certificate)} & set(wanted)
            wanted.update(dict.fromkeys(hits, True))
            if hits and certificate.serial_number not in known:
                entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
                revoked.append(entry.revocation_date(_now()).build())
                added.append(f"{certificate.serial_number:x}")
        for word, found in wanted.items():
            if not found:
                raise error(Reason.BAD_ARGUMENT, f"{self.folder}: no certificate of {word} was issued here")
        self._write_list(revoked)
        return added

    def _write_list(self, revoked: Iterable[x509.RevokedCertificate]) -> None:
        with _trouble(self.folder / "ca.crl"):
            old = x509.load_pem_x509_crl((self.folder / "ca.crl").read_bytes()) if self._has("ca.crl") else None
        number = 1
        if old is not None:
            number += old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        certificate, signer = self._certificate(), self._key()
        builder = x509.CertificateRevocationListBuilder().issuer_name(certificate.subject).last_update(_now() - _SKEW)
        builder = builder.next_update(min(_now() + datetime.timedelta(CRL_DAYS), certificate.not_valid_after_utc))
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(_authority_key(certificate), critical=False)
        for entry in revoked:
            builder = builder.add_revoked_certificate(entry)
        self._replace("ca.crl", builder.sign(signer, hashes.SHA256()).public_bytes(_PEM), 0o644)

    def _revoked(self) -> list[x509.RevokedCertificate]:
        with _trouble(self.folder / "ca.crl"):
            return list(x509.load_pem_x509_crl((self.folder / "ca.crl").read_bytes()))

    def _certificate(self) -> x509.Certificate:
        with _trouble(self.folder / "ca.crt"):
            return x509.load_pem_x509_certificate((self.folder / "ca.crt").read_bytes())

    def _key(self) -> ec.EllipticCurvePrivateKey:
        path = self.folder / "ca.key"
        with _trouble(path):
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate().public_key():
            raise error(Reason.BAD_ARGUMENT, f"{path}: not the key of {self.folder / 'ca.crt'}", path=str(path))
        return key

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.folder / name)

    def _vacant(self, *names: str) -> None:
        for name in names:
            if self._has(name):
                path = self.folder / name
                message = f"{path}: there is one already, and it is not replaced"
                raise error(Reason.BAD_ARGUMENT, message, path=str(path))

    def _write_new(self, name: str, content: bytes, mode: int) -> None:
        path = self.folder / name
        with _trouble(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _replace(self, name: str, content: bytes, mode: int) -> None:
        """In one step, so that a daemon that reads it meanwhile sees the old or the new."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.folder / f"{name}.new")  # what a killed run left
        self._write_new(f"{name}.new", content, mode)
        with _trouble(self.folder / name):
            os.replace(self.folder / f"{name}.new", self.folder / name)


_PEM = serialization.Encoding.PEM


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@contextlib.contextmanager
def _trouble(path: Path) -> Iterator[None]:
    """Name the file in whatever goes wrong with it."""
    try:
        yield
    except OSError as failure:
        raise error(Reason.BAD_ARGUMENT, f"{path}: {failure.strerror}", path=str(path)) from None
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as failure:
        raise error(Reason.BAD_ARGUMENT, f"{path}: {failure}", path=str(path)) from None


def _builder(  # noqa: PLR0913, PLR0917 - what a certificate says
    subject: x509.Name,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePublicKey,
    days: int,
    authority: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    if not 1 <= days <= CA_DAYS:
        raise error(Reason.BAD_ARGUMENT, f"{days} days: 1 to {CA_DAYS} are allowed")
    end = _now() + datetime.timedelta(days)
    if authority is not None:
        end = min(end, authority.not_valid_after_utc)
        identifier: x509.AuthorityKeyIdentifier = _authority_key(authority)
    else:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(_now() - _SKEW).not_valid_after(end)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    return builder.add_extension(identifier, critical=False)


def _authority_key(authority: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _usage(*names: str) -> x509.KeyUsage:
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in every})


def _purpose(hosts: Sequence[str] | None) -> x509.ObjectIdentifier:
    return ExtendedKeyUsageOID.CLIENT_AUTH if hosts is None else ExtendedKeyUsageOID.SERVER_AUTH


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _common_name(certificate: x509.Certificate) -> str:
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _file(name: str, *, server: bool) -> str:
    """The name of the files of a certificate, for a name that one can have."""
    if server:
        _alternatives([name])
    elif not _NAME.fullmatch(name):
        rule = "1 to 64 letters, digits and ._@-, of which the first is a letter or digit"
        raise error(Reason.BAD_ARGUMENT, f"{name!r} is no name for a client: {rule}")
    if len(name) > 64 or name.lower() == "ca":
        raise error(Reason.BAD_ARGUMENT, f"{name!r} can't be a certificate's name")
    return name.replace(":", "_")


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not _HOST.fullmatch(host) or len(host) > 253:
                raise _no_host(host) from None
            found.append(x509.DNSName(host))
    return found


def _no_host(host: str) -> KvmError:
    return error(Reason.BAD_ARGUMENT, f"{host!r} is no host name and no address")
