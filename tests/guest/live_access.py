"""Checks of who may do what."""

from __future__ import annotations

from collections.abc import Callable

from guest import as_user
from libkvm import KvmError
from libkvm.client import Client


def reason(user: str, work: Callable[[Client], object]) -> str:
    """Why a user's work fails; empty if it does not."""
    try:
        as_user(user, work)
    except KvmError as failure:
        return f"{failure.reason.value}: {failure.message}"
    return ""


def _open(client: Client) -> None:
    client.open().close()


def no_rule() -> str:
    """A user whom no rule names may not open the running kernel."""
    why = reason("nobody", _open)
    assert why.startswith("POLICY_DENIED"), why
    return why


def no_environment() -> str:
    """A user without the verb may read arguments, and no environment."""

    def read(client: Client) -> None:
        with client.open() as kernel:
            assert kernel.argv(1)
            kernel.environ(1)

    why = reason("bob", read)
    assert why.startswith("POLICY_DENIED"), why
    return why


def no_write() -> str:
    """A user without the verb may not open for writing."""
    why = reason("bob", lambda client: client.open(write=True).close())
    assert why.startswith("POLICY_DENIED"), why
    return why


ACCESS = {f.__name__: f for f in (no_rule, no_environment, no_write)}
