"""How calls reach a daemon from an event loop; :func:`transport` picks by target."""

from __future__ import annotations

from libkvm.aio.base import Transport
from libkvm.errors import Reason, error

__all__ = ["Transport", "transport"]


def transport(target: str) -> Transport:
    """Make the transport for a target; it connects at its first call, and belongs to the event loop of that.

    :param target: ``unix:/path``.
    :raises RequestError: the target is of no kind that libkvm knows.
    """
    if not target.startswith("unix:/"):
        raise error(Reason.BAD_ARGUMENT, f"target {target!r} is not of the form unix:/path", target=target)
    # Here and not above: importing grpc takes longer than importing libkvm.
    from libkvm.aio.grpc import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(target)
