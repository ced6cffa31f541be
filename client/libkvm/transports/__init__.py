"""How calls reach a daemon: one protocol, one module a way; :func:`transport` picks by target."""

from __future__ import annotations

from libkvm.errors import Reason, error
from libkvm.transports.base import Transport
from libkvm.transports.target import SCHEME, TlsFiles, address

__all__ = ["TlsFiles", "Transport", "known", "transport"]


def transport(target: str, tls: TlsFiles | None = None) -> Transport:
    """Make the transport for a target; it connects at its first call.

    :param target: ``unix:/path``, or ``dns:///host:port`` of a daemon on another host.
    :param tls: the certificates for the latter; None: those that the environment names.
    :raises RequestError: the target is of no kind that libkvm knows, or the certificates can't be used.
    """
    tls = known(target, tls)
    # Here and not above: importing grpc takes longer than importing libkvm.
    from libkvm.transports.grpc import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(target, tls)


def known(target: str, tls: TlsFiles | None) -> TlsFiles | None:
    """Check a target's form; answer the certificates that it needs, if it does.

    :raises RequestError: it is of no kind that libkvm knows.
    """
    if target.startswith("unix:/"):
        return None
    if not target.startswith(SCHEME):
        message = f"target {target!r} is not of the form unix:/path or dns:///host:port"
        raise error(Reason.BAD_ARGUMENT, message, target=target)
    address(target)
    return tls or TlsFiles()
