"""What asyncio leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


async def uncancelled(work: Awaitable[Result]) -> Result:
    """Wait for work that must not be left half done.

    A caller who is cancelled meanwhile, however often, does not cancel it, and comes back only when it is done.
    Twice is the rule and not the exception: a deadline that passes cancels here, and grpc cancels the call.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled():
            task.exception()  # or asyncio would log that nobody asked
        raise asyncio.CancelledError
    return task.result()
