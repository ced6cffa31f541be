"""Certificates for tests, by the cryptography library and none of kvmd's own code."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def subject(*names: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


def alternative(word: str) -> x509.GeneralName:
    """``DNS:x``, ``IP:x``, ``URI:x`` or ``email:x``."""
    kind, _, value = word.partition(":")
    if kind == "IP":
        return x509.IPAddress(ipaddress.ip_address(value))
    return {"DNS": x509.DNSName, "URI": x509.UniformResourceIdentifier, "email": x509.RFC822Name}[kind](value)


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key."""

    cert: str
    key: str
    serial: int


@dataclass
class Authority:
    """An authority whose files are in a folder: ``ca.crt``, and ``ca.crl`` once there is a list."""

    folder: Path
    name: str = "test authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        made = self._builder(subject(self.name), self.key, now() - DAY, now() + 30 * DAY)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = made.sign(self.key, hashes.SHA256())
        self.ca = self._write("ca.crt", self.certificate)

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePrivateKey, start: object, end: object):
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(subject(self.name))
        builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
        return builder.not_valid_before(start).not_valid_after(end)

    def _write(self, name: str, thing: object) -> str:
        path = self.folder / name
        path.with_suffix(".new").write_bytes(thing.public_bytes(serialization.Encoding.PEM))
        path.with_suffix(".new").replace(path)
        return str(path)

    def issue(
        self,
        file: str,
        *names: str,
        alternatives: Iterable[str] = (),
        days: tuple[float, float] = (-1, 30),
        usage: x509.ObjectIdentifier | None = None,
        padding: int = 0,
    ) -> Pair:
        """Issue a certificate.

        :param names: its common names; none: ``file``.
        :param days: from when to when, from now.
        :param padding: bytes of an extension that nobody knows.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        start, end = (now() + day * DAY for day in days)
        builder = self._builder(subject(*(names or (file,))) if names != ("",) else x509.Name([]), key, start, end)
        if entries := [alternative(word) for word in alternatives]:
            builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if padding:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(padding))
            builder = builder.add_extension(unknown, critical=False)
        made = builder.sign(self.key, hashes.SHA256())
        text = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.folder / f"{file}.key"
        path.touch(mode=0o600)
        path.write_bytes(text)
        return Pair(self._write(f"{file}.crt", made), str(path), made.serial_number)

    def server(self, file: str = "server", days: tuple[float, float] = (-1, 30), host: str = "localhost") -> Pair:
        return self.issue(file, alternatives=[f"DNS:{host}"], days=days, usage=ExtendedKeyUsageOID.SERVER_AUTH)

    def crl(self, *serials: int, days: tuple[float, float] = (-1, 30)) -> str:
        """Write the revocation list."""
        start, end = (now() + day * DAY for day in days)
        builder = x509.CertificateRevocationListBuilder().issuer_name(subject(self.name))
        builder = builder.last_update(start).next_update(end)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now() - DAY).build()
            builder = builder.add_revoked_certificate(entry)
        return self._write("ca.crl", builder.sign(self.key, hashes.SHA256()))
