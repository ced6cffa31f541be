"""Pages that were swapped out, from wherever they are: the newest copy first.

The swap cache comes before all else; then the map of zero pages (since 6.12), zswap, zram, and the area's image.
Whatever is in doubt is an error, and never other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.swap.cache import Cache
from kvmd.images.linux.swap.header import Header
from kvmd.images.linux.swap.images import Backing
from kvmd.images.linux.swap.zram import Device
from kvmd.images.linux.swap.zswap import Zswap
from kvmd.images.linux.swapinfo import Area

Slot = tuple[int, int]
"""The number of an area, and a slot's offset in it."""
Slots = Callable[[int], bytes]
"""Reads the page of a slot, by its offset."""


@dataclass(slots=True)
class Source:
    """Where an area's pages are, beside the caches.

    :ivar path: for messages.
    :ivar header: the area's header, where it is known.
    :ivar zram: the zram device that it is; None: another device.
    :ivar backing: its image; None: not given.
    :ivar unproven: the name of an image that was given, and is not believed.
    """

    area: Area
    path: str
    header: Header | None = None
    zram: Slots | None = None
    backing: Backing | None = None
    unproven: str = ""


class Chain:
    """Reads slots of the areas of one kernel, as they are now.

    :param sources: by the number of the area.
    :param given: whether any image was given at all.
    """

    def __init__(
        self, memory: Memory, caches: tuple[Cache, Zswap], sources: dict[int, Source], *, page: int, given: bool
    ) -> None:
        self._memory = memory
        self._cache, self._zswap = caches
        self.sources = sources
        self._page, self._given = page, given

    def pages(self, slots: Sequence[Slot]) -> Iterator[bytes]:
        """Read slots in turn, a piece one or more of them.

        :raises KvmError: after the pieces before it: NOT_PRESENT where there is no image of the area, or a compressor
            isn't known; SWAP_UNPROVEN; CORRUPT_PAGE, CORRUPT_DATA, SHORT_FILE, SOURCE_IO; the fault of a page that
            holds it.
        """
        start = 0
        while start < len(slots):
            number, offset = slots[start]
            source = self._source(number, offset)
            kept = self._in_memory(source, offset)
            if kept is not None:
                yield kept
                start += 1
                continue
            if source.backing is None:
                raise self._missing(source)
            end, most = start + 1, min(len(slots), start + CHUNK // self._page)
            while end < most and slots[end] == (number, offset + end - start) and not self._later(source, slots[end]):
                end += 1
            yield source.backing.read(offset, end - start)
            start = end

    def stored(self, slot: Slot) -> bool:
        """Whether a slot is read from its area's image.

        :raises KvmError: as :meth:`pages`.
        """
        number, offset = slot
        source = self._source(number, offset)
        return source.backing is not None and self._in_memory(source, offset) is None

    def _later(self, source: Source, slot: Slot) -> bool:
        """Whether the run ends before this slot, for it is elsewhere, or in doubt."""
        if slot[1] >= source.area.slots:
            return True
        try:
            return self._in_memory(source, slot[1]) is not None
        except KvmError:
            return True

    def _source(self, number: int, offset: int) -> Source:
        source = self.sources.get(number)
        if source is None:
            message = f"swapped out to swap area {number}, which the kernel does not have"
            raise error(Reason.CORRUPT_DATA, message, area=number, offset=offset)
        if not 0 < offset < source.area.slots:
            message = f"swapped out to slot {offset} of swap area {number}, which has {source.area.slots}"
            raise error(Reason.CORRUPT_DATA, message, area=number, offset=offset)
        return source

    def _in_memory(self, source: Source, offset: int) -> bytes | None:
        place = self._cache.find(source.area, offset)
        if place is not None:
            return self._memory.physical(place, self._page)
        if self._cache.zero(source.area, offset):
            return bytes(self._page)
        page = self._zswap.find(source.area.number, offset)
        if page is None and source.zram is not None:
            return source.zram(offset)
        return page

    def _missing(self, source: Source) -> KvmError:
        number = source.area.number
        if source.unproven:
            message = (
                f"{source.unproven}: nothing in the dump shows that swap area {number} ({source.path}) is as it was"
                " then; KVM_ANY_SWAP (kvmctl --any-swap) takes it, if nobody has swapped to it since"
            )
            return error(Reason.SWAP_UNPROVEN, message, path=source.unproven, area=number)
        if not self._given:
            return error(Reason.NOT_PRESENT, "swapped out, no swap image given", area=number)
        uuid = (source.header and source.header.uuid) or "unknown"
        return error(Reason.NOT_PRESENT, f"swap area {number} ({source.path}, UUID {uuid}) not given", area=number)


def on_zram(device: Device, block: Callable[[int], int]) -> Slots:
    """Slots of an area on a zram device.

    :param block: where a slot lies on it.
    """
    return lambda offset: device.read(block(offset))
