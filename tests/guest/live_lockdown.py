"""Checks of kernel lockdown, which can be raised and never lowered: they come last. Source: kernel_lockdown(7)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from live_access import reason

from guest import as_user
from libkvm.client import Client

LEVEL = Path("/sys/kernel/security/lockdown")


def _open(corefile: str | None = None, *, write: bool = False) -> Callable[[Client], None]:
    return lambda client: client.open(corefile=corefile, write=write).close()


def _refused(level: str, work: Callable[[Client], None], instead: str) -> str:
    why = reason("alice", work)
    assert why.startswith("LOCKDOWN"), why
    assert f"lockdown ({level})" in why
    assert instead in why
    return why


def integrity() -> str:
    """Integrity forbids /dev/mem and writes, and leaves /proc/kcore."""
    LEVEL.write_text("integrity")

    def banner(client: Client) -> bytes:
        with client.open() as kernel:
            return kernel.read(kernel.symbol("linux_banner").value, 64)

    assert as_user("alice", banner).startswith(b"Linux version ")
    _refused("integrity", _open(write=True), "/proc/kcore")
    return _refused("integrity", _open("/dev/mem"), "/proc/kcore")


def confidentiality() -> str:
    """Confidentiality forbids /proc/kcore as well; processes are still there with KVM_NO_FILES."""
    LEVEL.write_text("confidentiality")
    _refused("confidentiality", _open("/dev/mem"), "crash dump")
    return _refused("confidentiality", _open(), "crash dump")


LOCKDOWN = {f.__name__: f for f in (integrity, confidentiality)}
