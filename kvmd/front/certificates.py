"""The certificates of the TLS listener: what it shows, whom it trusts, and whose name a client's certificate has.

TLS 1.3 and nothing older: so there is no renegotiation and no cipher to choose. No session tickets: who comes back
shows the certificate again, and is looked up in the revocation list again.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvmd.front.crl import CrlError, revoked_serials
from kvmd.front.lock import ListenError
from kvmd.front.peer import Certificate
from kvmd.front.refusals import why

ALPN = "h2"
_NAME_MAX = 255
_SAN_KINDS = ("DNS", "email", "URI")


class CertificateError(ListenError):
    """A certificate, key or list can't be used; the message is one line that names the file."""


class TlsFiles(NamedTuple):
    """The files of ``[listen]``, all PEM.

    :ivar cert: the server's certificate, and what leads from it to the authority that clients trust.
    :ivar key: its private key, not encrypted.
    :ivar client_ca: the authorities that may name clients.
    :ivar client_crl: their revocation lists; empty: there are none.
    """

    cert: str
    key: str
    client_ca: str
    client_crl: str = ""

    def versions(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file does.

        :raises CertificateError: a file can't be looked at.
        """
        return tuple(_version(path) for path in self if path)


class Trust(NamedTuple):
    """The files as they were when they were read.

    :ivar context: for new connections.
    :ivar revoked: serial numbers.
    :ivar authorities: the content of the file of authorities.
    """

    context: ssl.SSLContext
    revoked: frozenset[int]
    authorities: bytes


def load(files: TlsFiles) -> Trust:
    """Read the files. Blocks, as file systems do.

    :raises CertificateError: naming the file that can't be used.
    """
    _check_key(files.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # all of TLS 1.3 are good, and clients know their hardware
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    try:
        # Without a password OpenSSL would ask on the terminal.
        context.load_cert_chain(files.cert, files.key, password="")
    except (OSError, ValueError) as wrong:
        raise CertificateError(f"tls_cert {files.cert}, tls_key {files.key}: {why(wrong)}") from None
    authorities = _read("tls_client_ca", files.client_ca)
    _verify_with("tls_client_ca", files.client_ca, context, authorities)
    if not context.cert_store_stats()["x509_ca"]:
        raise CertificateError(f"tls_client_ca {files.client_ca}: no certificate of an authority in it")
    return Trust(context, _revoked(files.client_crl, context) if files.client_crl else frozenset(), authorities)


def _revoked(path: str, context: ssl.SSLContext) -> frozenset[int]:
    before = context.cert_store_stats()["x509"]
    content = _read("tls_client_crl", path)
    try:
        revoked = revoked_serials(content)
        context.load_verify_locations(path)
    except (OSError, CrlError) as wrong:
        raise CertificateError(f"tls_client_crl {path}: {why(wrong)}") from None
    if context.cert_store_stats()["x509"] != before:  # who may write the list must not name new authorities
        raise CertificateError(f"tls_client_crl {path}: there are certificates in it")
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return revoked


def _verify_with(key: str, path: str, context: ssl.SSLContext, content: bytes) -> None:
    try:
        context.load_verify_locations(cadata=content.decode("ascii"))
    except (OSError, ValueError) as wrong:
        raise CertificateError(f"{key} {path}: {why(wrong)}") from None


def _read(key: str, path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as wrong:
        raise CertificateError(f"{key} {path}: {wrong.strerror}") from None


def _version(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError as wrong:
        raise CertificateError(f"{path}: {wrong.strerror}") from None
    return found.st_ino, found.st_size, found.st_ctime_ns  # which every change of a file changes


def _check_key(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as wrong:
        raise CertificateError(f"tls_key {path}: {wrong.strerror}") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise CertificateError(f"tls_key {path}: everybody may read it: chmod o= {path}, and make a new key")


def identify(tls: ssl.SSLObject, address: str) -> Certificate:
    """Read who is on the other end of a connection whose handshake is done.

    The name, which ``cert:NAME`` of a rule means, is the certificate's common name; of a certificate without one, the
    only entry of its subjectAltName (DNS, email or URI).

    :raises ValueError: the certificate has no such name, or several; or the client does not speak HTTP/2.
    """
    if tls.selected_alpn_protocol() != ALPN:
        raise ValueError(f"the client does not offer the protocol {ALPN} (ALPN)")
    found: dict[str, Any] = tls.getpeercert() or {}
    expires = ssl.cert_time_to_seconds(found["notAfter"])
    return Certificate(_name(found), int(found["serialNumber"], 16), expires, address)


def _name(certificate: Mapping[str, Any]) -> str:
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    if not names:
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind in _SAN_KINDS]
    if len(names) != 1:
        raise ValueError(f"the certificate has {len(names)} names, and one is wanted")
    name = str(names[0])
    if not name or not name.isprintable() or len(name) > _NAME_MAX:
        raise ValueError("the certificate's name is empty, too long, or holds control characters")
    return name
