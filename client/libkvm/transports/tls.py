"""A client's certificates as gRPC and OpenSSL take them, and why a connection with them fails.

gRPC says little of a failed handshake; so when there is no connection the same is tried once more with OpenSSL,
which does say.
"""

from __future__ import annotations

import socket
import ssl

from libkvm.errors import KvmError, Reason, error
from libkvm.transports.target import TlsFiles, address

_PATIENCE = 3.0  # seconds for each step of the second try


def contents(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """Read what is named: authorities, key and certificate, of which the latter are a pair.

    :raises RequestError: naming the file that can't be used.
    """
    context(files)
    ca, key, cert = (_content(files.named(what)) for what in ("ca", "key", "cert"))
    return ca, key, cert


def context(files: TlsFiles) -> ssl.SSLContext:
    """Make OpenSSL's view of the files.

    :raises RequestError: naming the file that can't be used.
    """
    ca, cert, key = (files.named(what) for what in ("ca", "cert", "key"))
    for name in (ca, cert, key):
        _content(name)
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.set_alpn_protocols(["h2"])
    try:
        made.load_verify_locations(ca)
    except (OSError, ValueError):
        raise error(Reason.BAD_ARGUMENT, f"{ca}: there is no certificate in it", path=ca) from None
    try:
        made.load_cert_chain(cert, key, password="")  # without a password OpenSSL asks on the terminal
    except (OSError, ValueError) as wrong:
        message = f"certificate {cert} with key {key}: {_words(wrong)}"
        raise error(Reason.BAD_ARGUMENT, message, path=cert) from None
    return made


def _content(name: str) -> bytes:
    try:
        with open(name, "rb") as file:
            return file.read()
    except OSError as failure:
        raise error(Reason.BAD_ARGUMENT, f"{name}: {failure.strerror}", path=name) from None


def diagnose(target: str, files: TlsFiles, details: str) -> KvmError:
    """Find out why there is no connection. Blocks, for some seconds at most.

    :param details: what gRPC says of it, which is told if nothing better is found.
    """
    try:
        why = _try(address(target), files) or details
    except ssl.SSLError as failure:
        message = f"no connection with the kvmd on {target}: {_verdict(failure)}"
        return error(Reason.BAD_CERTIFICATE, message, target=target)
    except KvmError as failure:  # the files have changed since
        return failure
    except OSError as failure:
        why = _trouble(failure)
    return error(Reason.UNREACHABLE, f"no kvmd answers on {target}: {why}", target=target)


def _try(where: tuple[str, int], files: TlsFiles) -> str:
    """Connect and wait for the daemon's first word; what is wrong with it, if something is."""
    trust = context(files)
    with (
        socket.create_connection(where, _PATIENCE) as plain,
        trust.wrap_socket(plain, server_hostname=where[0]) as tls,
    ):
        return "" if tls.recv(1) else "it closed the connection; its log says why"


def _verdict(failure: ssl.SSLError) -> str:
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted here: {failure.verify_message}"
    # In TLS 1.3 the daemon's verdict on the client's certificate is an alert that follows the handshake.
    if "ALERT" in (failure.reason or ""):
        return f"it does not accept this client's certificate: {_words(failure)}"
    return f"this is no TLS 1.3: {_words(failure)}"


def _trouble(failure: OSError) -> str:
    if isinstance(failure, TimeoutError):
        return "no answer in time; is the address right, and no firewall between?"
    if isinstance(failure, ConnectionRefusedError):
        return "nothing listens there; is kvmd running, with listen.tcp set?"
    return failure.strerror or str(failure)


def _words(wrong: Exception) -> str:
    if isinstance(wrong, ssl.SSLError) and wrong.reason:
        words = wrong.reason.lower().replace("_", " ")
        return words.rpartition("alert ")[2]
    return (wrong.strerror if isinstance(wrong, OSError) else None) or str(wrong)
