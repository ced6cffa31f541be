"""What a target of another host is made of: its address, and the files of certificates that go with it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from libkvm.errors import Reason, error

SCHEME = "dns:///"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Names of PEM files; None: the environment's KVMD_TLS_CA, KVMD_TLS_CERT, KVMD_TLS_KEY.

    :ivar ca: the authorities that the daemon's certificate may come from.
    :ivar cert: this client's certificate.
    :ivar key: its private key.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def named(self, what: str) -> str:
        """Answer a file's name.

        :param what: ``ca``, ``cert`` or ``key``.
        :raises RequestError: there is none.
        """
        variable = f"KVMD_TLS_{what.upper()}"
        name = getattr(self, what) or os.environ.get(variable)
        if not name:
            ways = f"name {variable}, or tls_{what} (kvmctl --tls-{what})"
            message = f"a daemon on another host wants certificates: {ways}"
            raise error(Reason.BAD_ARGUMENT, message, variable=variable)
        return str(name)


def address(target: str) -> tuple[str, int]:
    """Split ``dns:///host:port``.

    :raises RequestError: it is not of that form.
    """
    host, _, port = target.removeprefix(SCHEME).rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    number = int(port) if port.isascii() and port.isdigit() else 0
    if not target.startswith(SCHEME) or not host or "/" in host or not 0 < number < 65536:
        raise error(Reason.BAD_ARGUMENT, f"target {target!r} is not of the form dns:///host:port", target=target)
    return host, number
