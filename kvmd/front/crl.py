"""The serial numbers in certificate revocation lists, to end connections whose certificate has been revoked since.

Whether a new client's certificate is revoked, and whether a list is its authority's, OpenSSL decides at the handshake;
it can't be asked again about a connection that is open. Source: RFC 5280, section 5.1; X.690 (DER).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator

_INTEGER, _UTC_TIME, _GENERALIZED_TIME, _SEQUENCE = 0x02, 0x17, 0x18, 0x30
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----\s*([A-Za-z0-9+/=\s]*?)-----END X509 CRL-----")


class CrlError(ValueError):
    """This is no certificate revocation list."""


def revoked_serials(pem: bytes) -> frozenset[int]:
    """Collect the serial numbers that the lists in a PEM file revoke.

    :raises CrlError: there is no list in it, or one that is not what RFC 5280 says.
    """
    blocks = _BLOCK.findall(pem)
    if not blocks or len(blocks) != pem.count(b"-----BEGIN X509 CRL-----"):
        raise CrlError("no X509 CRL in PEM form")
    found: set[int] = set()
    for block in blocks:
        try:
            der = binascii.a2b_base64(block)
        except binascii.Error as wrong:
            raise CrlError(f"not base64: {wrong}") from None
        found.update(_serials(memoryview(der)))
    return frozenset(found)


def _serials(der: memoryview) -> Iterator[int]:
    """The serials of one CertificateList."""
    fields = list(_items(_inside(_inside(der))))  # of the TBSCertList, which is the list's first field
    if fields and fields[0][0] == _INTEGER:
        del fields[0]  # the version
    # The signature's algorithm, the issuer, thisUpdate and perhaps nextUpdate; then what is revoked, if anything is.
    rest = [item for item in fields[2:] if item[0] not in (_UTC_TIME, _GENERALIZED_TIME)]
    if len(fields) < 3 or [tag for tag, _ in fields[:2]] != [_SEQUENCE, _SEQUENCE] or len(rest) == len(fields) - 2:
        raise CrlError("not the fields of a CertificateList")
    if not rest or rest[0][0] != _SEQUENCE:
        return
    for tag, entry in _items(rest[0][1]):
        first = next(_items(entry), None)
        if tag != _SEQUENCE or first is None or first[0] != _INTEGER or not len(first[1]):
            raise CrlError("an entry without a serial number")
        yield int.from_bytes(first[1], signed=True)


def _inside(der: memoryview) -> memoryview:
    """The content of the first item, which is a SEQUENCE."""
    tag, content = next(_items(der), (0, der))
    if tag != _SEQUENCE:
        raise CrlError("not a SEQUENCE")
    return content


def _items(der: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Tag and content of each item, one after the other."""
    at = 0
    while at < len(der):
        if at + 2 > len(der):
            raise CrlError("an item is cut off")
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            more = length & 0x7F
            if not 1 <= more <= 4 or at + more > len(der):
                raise CrlError("a length that DER has not")
            length, at = int.from_bytes(der[at : at + more]), at + more
        if at + length > len(der):
            raise CrlError("an item is longer than what it is in")
        yield tag, der[at : at + length]
        at += length
