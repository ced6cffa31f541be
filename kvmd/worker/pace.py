"""How many large answers may be with clients at once, so that who makes small reads beside them gets a processor.

A worker makes a large answer in less time than its client takes to copy it. Of many clients that read one piece after
the other, all would soon have an answer and want a processor, and a small read would wait for its turn among them
twice: at the worker's end and at its own. So while there are small reads, a worker begins with no large one until
an answer has been copied: those who wait for theirs are asleep.
"""

from __future__ import annotations

import os
import time

_RECENT = 5e-3
"""For how many seconds after a small read large ones stand back. Who reads one after the other has asked again."""
_COPIED = 2e-3
"""After how many seconds an answer counts as copied, whatever its client says."""


class Pace:
    """Knows which halves of clients' windows have been filled, and not been asked for again.

    :param processors: how many there are; one is the worker's, at any other an answer may be copied.
    """

    def __init__(self, processors: int | None = None) -> None:
        self._most = max(1, (processors or len(os.sched_getaffinity(0))) - 1)
        self._filled: dict[tuple[int, int], float] = {}
        self._small = -_RECENT

    def small(self) -> None:
        """Somebody makes a small read."""
        self._small = time.monotonic()

    def crowded(self) -> bool:
        """Whether large reads are to stand back."""
        return time.monotonic() - self._small < _RECENT

    def asked(self, client: int, half: int) -> None:
        """A client, known by its socket, has no more use for what is in this half of its window."""
        self._filled.pop((client, half), None)

    def filled(self, client: int, half: int) -> None:
        """A client has got something to copy."""
        self.asked(client, half)
        self._filled[client, half] = time.monotonic()

    def rest(self, clients: int) -> float:
        """For how many seconds to begin with nothing large unless somebody asks for more; 0: go on.

        :param clients: how many there are; where each has a processor, nobody waits for another.
        """
        if not self.crowded():
            self._filled.clear()
        now = time.monotonic()
        while self._filled:
            oldest, since = next(iter(self._filled.items()))
            if now - since < _COPIED:
                few = len(self._filled) < self._most or clients - 1 <= self._most
                return 0.0 if few else _COPIED - (now - since)
            del self._filled[oldest]
        return 0.0
