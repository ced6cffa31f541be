"""The page cache of an image, from the daemon's side: makes it, hands it on, and replaces it.

A cache can't be taken from who has mapped it. So when somebody to whom it was given may no longer read the image, the
worker stops to write to it: nothing new comes into it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from kvmd import fast
from kvmd.errors import KvmError
from kvmd.handles.process import Worker
from kvmd.handles.shared import Shared


class PageCaches:
    """The one cache at a time of one worker.

    :param size: what it may take in bytes, 0 for none.
    """

    def __init__(self, worker: Worker, size: int) -> None:
        self._worker = worker
        # Readers rely on an order of memory that other processors don't keep (kvmd.worker.cache).
        self._slots = fast.slots(size) if os.uname().machine == "x86_64" else 0
        self._current: Shared | None = None
        self._making = asyncio.Lock()

    async def current(self) -> Shared | None:
        """The cache in use, made when it is first asked for; None if there is to be none.

        :raises KvmError: the worker is gone.
        :raises OSError: no descriptor is left.
        """
        async with self._making:
            if self._current is None and self._slots:
                self._current = await self._make()
            return self._current

    async def _make(self) -> Shared:
        shared = Shared("kvmd-pages", fast.cache_size(self._slots))
        try:
            await self._worker.cache(shared.fd, shared.size)
            shared.seal()
        except BaseException:
            shared.close()
            raise
        return shared

    def retire(self) -> Coroutine[Any, Any, None]:
        """Give nobody the one in use any more; at once, so that whoever asks from here on gets another.

        :returns: what is left to do: the worker is told to write nothing more to it.
        """
        self.close()
        return self._stop()

    async def _stop(self) -> None:
        async with self._making:
            if self._current is None:  # else it writes to another already
                with suppress(KvmError):  # it has ended
                    await self._worker.cache(None, 0)

    def close(self) -> None:
        """Let go of what there is."""
        if self._current is not None:
            self._current.close()
            self._current = None
