"""Whether an image is of the moment of the dump: what the kernel had in memory of the area, too, is the same in it.

The header of an area outlives what is in it, so that an image from before or after the dump fits by its header. A page
of the swap cache that is clean, and that no process maps, is what was last written to its slot, or read from there.
"""

from __future__ import annotations

from itertools import islice

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.swap.cache import Cache
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.images import Backing, Known
from kvmd.images.linux.swap.zswap import Zswap

_LOOKED = 1 << 12  # pages of the swap cache of one area
_COMPARED = 1 << 6


def compare(memory: Memory, frames: Frames, caches: tuple[Cache, Zswap], known: Known, backing: Backing) -> None:
    """Compare an image with what is cached of the area; what can't be compared is passed over.

    :raises KvmError: SWAP_FOREIGN.
    """
    cache, zswap = caches
    compared = 0
    for offset, address in islice(_cached(cache, known), _LOOKED):
        try:
            page = frames.read(address)
            if not frames.settled(page) or cache.zero(known.area, offset) or zswap.has(known.area.number, offset):
                continue
            place = cache.find(known.area, offset)
            ours = memory.physical(place, frames.page_size) if place is not None else None
            theirs = backing.read(offset, 1)
        except KvmError:
            continue
        if ours is not None and ours != theirs:
            name = backing.store.name
            message = f"{name}: {known.label} as it was at another time: slot {offset} differs from what the kernel had"
            raise error(Reason.SWAP_FOREIGN, message, path=name, offset=offset)
        compared += 1
        if compared >= _COMPARED:
            return


def _cached(cache: Cache, known: Known) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        for each in islice(cache.pages(known.area), _LOOKED):
            found.append(each)  # noqa: PERF402 - what comes before a fault counts
    except KvmError:
        pass
    return found
