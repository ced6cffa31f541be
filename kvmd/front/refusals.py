"""What becomes of clients that are not let in: each is written down, and no flood of them fills the disk."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable

_TOLD, _SPAN = 50, 10.0  # refusals that are written down in so many seconds; of the rest, how many they were


class Refusals:
    """Tells of refusals, and of how many more there were.

    :ivar count: how many there were since the start.
    """

    def __init__(self, tell: Callable[[str, str], object]) -> None:
        """Tell by calling ``tell`` with an address and a reason."""
        self._tell = tell
        self._began, self._told, self._untold = 0.0, 0, 0
        self.count = 0

    def add(self, address: str, reason: str) -> None:
        """Tell of a client that was not let in, or no longer."""
        self.count += 1
        self.flush()
        if self._told < _TOLD:
            self._told += 1
            self._tell(address, reason)
        else:
            self._untold += 1

    def flush(self) -> None:
        """Begin a new span if the last one is over, with what it left untold."""
        now = time.monotonic()
        if now - self._began < _SPAN:
            return
        self._began, self._told = now, 0
        if self._untold:
            self._tell("several", f"{self._untold} more clients were refused")
            self._untold = 0


def why(failure: Exception) -> str:
    """Say in words what made a handshake fail."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {failure.verify_message}"
    if isinstance(failure, ssl.SSLError) and failure.reason:
        return failure.reason.replace("_", " ").lower()
    return (failure.strerror if isinstance(failure, OSError) else None) or str(failure)
