"""What a transport does."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from libkvm.calls import A, Call, Q


class Transport(Protocol):
    """Carries calls to one daemon over one connection, which owns the descriptors opened over it.

    Safe to use from several threads. Every failure is a :class:`libkvm.KvmError`.
    """

    @property
    def target(self) -> str:
        """Where the daemon is, as the user wrote it."""

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""

    def unary(self, call: Call[Q, A], request: Q, timeout: float) -> A:
        """Make a call that has one answer; ``timeout`` is in seconds."""

    def stream(self, call: Call[Q, A], request: Q, timeout: float) -> Generator[A]:
        """Make a call that has many answers; closing the iterator cancels it."""

    def renew(self) -> None:
        """Leave a connection whose daemon has ended: calls on what it had opened fail, others go to the next daemon.

        Called in any thread.
        """

    def close(self) -> None:
        """Close the connection, and with it every descriptor opened over it. Idempotent."""
