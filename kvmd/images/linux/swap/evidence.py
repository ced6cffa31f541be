"""Whether an image is of the moment of the dump: what the kernel had in memory of the area, too, is the same in it.

The header of an area outlives what is in it, so that an image from before or after the dump fits by its header. A page
of the swap cache that is clean, and that no process maps, is what was last written to its slot, or read from there. And
processes have pages of which the kernel knows the content: :mod:`kvmd.images.linux.auxv`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice

from kvmd.errors import KvmError, Reason, error
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.swap.cache import Cache
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.images import Backing, Known
from kvmd.images.linux.swap.zswap import Zswap

_LOOKED = 1 << 12  # pages of the swap cache of one area
_COMPARED = 1 << 6
_MOST_AGAINST = 10  # one process in so many may have written over what the kernel put on its stack


def compare(memory: Memory, frames: Frames, caches: tuple[Cache, Zswap], known: Known, backing: Backing) -> bool:
    """Compare an image with what is cached of the area; what can't be compared is passed over.

    :return: whether anything was compared, and so shows that the image is the right one.
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
            raise _other_time(known, backing, f"slot {offset} differs from what the kernel had")
        compared += 1
        if compared >= _COMPARED:
            break
    return compared > 0


def weigh(witnesses: Iterable[tuple[int, bool]], doubtful: Mapping[int, tuple[Known, Backing]]) -> list[int]:
    """Judge the images that nothing was found in the swap cache for by processes' own pages.

    :param witnesses: (area's number, whether the image has what the kernel says), as many as there are.
    :return: the numbers of the areas whose images nothing shows to be right.
    :raises KvmError: SWAP_FOREIGN.
    """
    told = Counter[tuple[int, bool]]()
    for number, agrees in witnesses:
        told[number, agrees] += 1
        if all(told[each, True] >= _COMPARED for each in doubtful):
            break
    for number, (known, backing) in doubtful.items():
        against = told[number, False]
        if against * _MOST_AGAINST > told[number, True]:
            why = f"{against} of {against + told[number, True]} processes' stacks are not what the kernel put there"
            raise _other_time(known, backing, why)
    return [number for number in doubtful if not told[number, True]]


def _other_time(known: Known, backing: Backing, why: str) -> KvmError:
    name = backing.store.name
    return error(Reason.SWAP_FOREIGN, f"{name}: {known.label} as it was at another time: {why}", path=name)


def _cached(cache: Cache, known: Known) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        for each in islice(cache.pages(known.area), _LOOKED):
            found.append(each)  # noqa: PERF402 - what comes before a fault counts
    except KvmError:
        pass
    return found
