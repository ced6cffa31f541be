"""A TLS 1.3 client that can say what no library would: records made by hand after a real handshake. RFC 8446."""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_HANDSHAKE, _APPLICATION = 22, 23
_SECRET = "CLIENT_TRAFFIC_SECRET_0"


def _expand(secret: bytes, label: str, length: int) -> bytes:
    """HKDF-Expand-Label with no context; one block of SHA-384 is enough for all there is."""
    full = b"tls13 " + label.encode()
    info = length.to_bytes(2) + bytes([len(full)]) + full + b"\0"
    return hmac.new(secret, info + b"\x01", hashlib.sha384).digest()[:length]


class HandMade:
    """A connection whose handshake OpenSSL did, and whose records from here on are ours."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, keys: Path) -> None:
        """Shake hands.

        :param keys: a file that doesn't exist, for the session's secrets.
        """
        context.keylog_filename = str(keys)
        context.set_alpn_protocols(["h2"])
        self.sock = socket.create_connection(address, 10)
        inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(inward, outward, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(outward.read())
                inward.write(self.sock.recv(65536))
        assert tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        self.finished = outward.read()  # not sent yet: what follows may go with it
        lines = dict(line.split(" ")[::2] for line in keys.read_text().splitlines() if not line.startswith("#"))
        self._use(bytes.fromhex(lines[_SECRET]))

    def _use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._aead, self._iv = AESGCM(_expand(secret, "key", 32)), _expand(secret, "iv", 12)

    def record(self, content: bytes, kind: int = _APPLICATION) -> bytes:
        """Encrypt a record."""
        inner = content + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2)
        nonce = (int.from_bytes(self._iv) ^ self._number).to_bytes(12)
        self._number += 1
        return head + self._aead.encrypt(nonce, inner, head)

    def key_update(self, answer: bool = True) -> bytes:
        """Encrypt a KeyUpdate; what comes after it is under the new key."""
        made = self.record(b"\x18\x00\x00\x01" + bytes([answer]), _HANDSHAKE)
        self._use(_expand(self._secret, "traffic upd", 48))
        return made

    def hello_again(self) -> bytes:
        """Encrypt a ClientHello, which asks an older TLS for a renegotiation."""
        return self.record(b"\x01\x00\x00\x04\x03\x03\x00\x00", _HANDSHAKE)
