"""Has the index of a kernel's build made, of what an image's worker read, by another worker that sees nothing else.

The worker of the image may have been taken over by what it parses, and what it made would be used for other dumps. So
it only says what it has read; the bytes are parsed in a new process, and the index is good for the same bytes alone.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from kvmd.errors import Reason, error
from kvmd.handles.bounds import Bounds
from kvmd.handles.indexes import Kept
from kvmd.handles.process import Worker

MOST_INPUTS = 64 << 20


async def learn(worker: Worker, bounds: Bounds) -> bytes | None:
    """Make the index that a worker has missed; None if it has missed none.

    :raises KvmError: it can't be made.
    :raises OSError: no memory, or process, can be had; TimeoutError: the worker doesn't come to an end.
    """
    async with asyncio.timeout(bounds.patience):  # in all: a worker may answer bit by bit for ever
        given = await _inputs(worker)
    if not given:
        return None
    maker = await Worker.start(bounds._replace(helpers=0))
    try:
        with await asyncio.to_thread(Kept, memoryview(given)) as inputs:
            return await maker.make(inputs.fd)
    finally:
        await maker.close()


async def _inputs(worker: Worker) -> bytearray:
    given = bytearray()
    async with aclosing(worker.stream("IndexInputs", b"")) as pieces:
        async for piece in pieces:
            given += piece
            if len(given) > MOST_INPUTS:
                raise error(Reason.CORRUPT_DATA, f"it is made of more than {MOST_INPUTS} bytes")
    return given
