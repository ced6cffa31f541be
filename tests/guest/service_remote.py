"""Clients of other hosts and the service: the port is systemd's, and the service has no network all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service import CONFIG, RULES, client, journal, records, run, show, stop, until

PKI = "/etc/kvmd/pki"
LISTEN = f"""
[listen]
tls_cert = "{PKI}/localhost.crt"
tls_key = "{PKI}/localhost.key"
tls_client_ca = "{PKI}/ca.crt"
tls_client_crl = "{PKI}/ca.crl"
"""
DROP_IN = Path("/run/systemd/system/kvmd.socket.d/remote.conf")
CAROL = Path("/home/alice/carol")


def _certificates() -> dict[str, str]:
    """What makes of alice's client one with carol's certificate."""
    for words in (("init",), ("issue", "--server", "localhost"), ("issue", "carol")):
        run("kvmctl", "pki", *words, "--dir", PKI)
    CAROL.mkdir(parents=True)
    for name in ("ca.crt", "carol.crt", "carol.key"):
        run("install", "-m", "400", "-o", "alice", f"{PKI}/{name}", str(CAROL))
    files = {"CA": "ca.crt", "CERT": "carol.crt", "KEY": "carol.key"}
    return {"KVMD_TARGET": "dns:///localhost:7443", "GRPC_VERBOSITY": "NONE"} | {
        f"KVMD_TLS_{key}": f"{CAROL}/{name}" for key, name in files.items()
    }


@contextmanager
def _port() -> Iterator[None]:
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(Path("/usr/share/doc/kvmd/kvmd.socket.d/remote.conf").read_text())
    CONFIG.write_text(LISTEN + RULES.replace("group:kvmd", "cert:carol"))
    stop()
    run("systemctl", "restart", "kvmd.socket")
    try:
        yield
    finally:
        DROP_IN.unlink()
        CONFIG.write_text(RULES)
        stop()
        run("systemctl", "restart", "kvmd.socket")


def _as_carol(environ: dict[str, str]) -> str:
    os.environ |= environ
    try:
        return client("alice")
    finally:
        for name in environ:
            del os.environ[name]


def remote() -> str:
    """A certificate opens the running kernel through systemd's port, until it is revoked."""
    carol = _certificates()
    with _port():
        answer = _as_carol(carol)
        assert answer == "OK b'Linux version'", f"{answer}\n{journal()}"
        assert client("alice").startswith("POLICY_DENIED")  # by the Unix socket she is somebody else
        [opened] = records("KVMD_EVENT=open", "KVMD_PEER=cert:carol")
        assert opened["KVMD_ADDRESS"].startswith(("[::1]:", "[::ffff:127.0.0.1]:", "127.0.0.1:")), opened
        devices = run("nsenter", "-t", show("MainPID"), "-n", "cat", "/proc/net/dev").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in devices] == ["lo"], devices
        assert show("RestrictAddressFamilies") == "AF_UNIX"
        run("kvmctl", "pki", "revoke", "carol", "--dir", PKI)
        until(lambda: "1 revoked" in journal())
        revoked = _as_carol(carol)
        assert revoked.startswith("BAD_CERTIFICATE"), revoked
        assert records("KVMD_EVENT=refused")
    return revoked
