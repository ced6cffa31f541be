"""How calls reach a daemon from an event loop; :func:`transport` picks by target."""

from __future__ import annotations

from libkvm.aio.base import Transport
from libkvm.transports import TlsFiles, known

__all__ = ["TlsFiles", "Transport", "transport"]


def transport(target: str, tls: TlsFiles | None = None) -> Transport:
    """Make the transport for a target; it connects at its first call, and belongs to the event loop of that.

    :param target: ``unix:/path``, or ``dns:///host:port`` of a daemon on another host.
    :param tls: the certificates for the latter; None: those that the environment names.
    :raises RequestError: the target is of no kind that libkvm knows, or the certificates can't be used.
    """
    tls = known(target, tls)
    # Here and not above: importing grpc takes longer than importing libkvm.
    from libkvm.aio.grpc import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(target, tls)
