"""What asyncio leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def uncancelled(work: Awaitable[Result]) -> Result:
    """Wait for work that must not be left half done.

    A caller who is cancelled meanwhile does not cancel it, and comes back only when it is done.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
