"""The swap areas of one kernel, with whatever can be read of them: how the parts of this package go together."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from kvmd.errors import KvmError
from kvmd.images.base import File
from kvmd.images.linux.fields import Fields
from kvmd.images.linux.kernel import Kernel
from kvmd.images.linux.paths import Paths
from kvmd.images.linux.swap.cache import Cache, SwapCache
from kvmd.images.linux.swap.chain import Chain, Slots, Source, on_zram
from kvmd.images.linux.swap.devices import BlockDevice, BlockDevices
from kvmd.images.linux.swap.evidence import compare
from kvmd.images.linux.swap.extents import Extents
from kvmd.images.linux.swap.frames import Frames
from kvmd.images.linux.swap.header import Header, parse
from kvmd.images.linux.swap.images import Backing, Known, match
from kvmd.images.linux.swap.store import Store
from kvmd.images.linux.swap.table import SwapTables
from kvmd.images.linux.swap.xarray import XArrays
from kvmd.images.linux.swap.zram import Zram
from kvmd.images.linux.swap.zswap import Zswap
from kvmd.images.linux.swapinfo import Area, SwapAreas
from kvmd.images.linux.vmcoreinfo import release_of

Facts = tuple[str, str, str]
"""Of an area: its UUID, its label, and what has its content: the image's name, ``memory`` for zram; empty: unknown."""


class SwapReader:
    """Reads what was swapped out.

    :param files: images of swap areas; of the running kernel, the areas themselves, opened with O_DIRECT.
    :param paths: makes what resolves the paths of areas, for messages.
    :ivar doubtful: of :attr:`matched`, the images that the swap cache neither proved nor refuted.
    :raises KvmError: NO_TYPES, NO_SYMBOLS, CORRUPT_DATA, UNSUPPORTED.
    """

    def __init__(self, kernel: Kernel, areas: SwapAreas, files: Sequence[File], paths: Callable[[], Paths]) -> None:
        self.doubtful: dict[int, tuple[Known, Backing]] = {}
        self._kernel, self._areas, self._files, self._paths = kernel, areas, files, paths
        self._live, self._page = kernel.dump.live, kernel.dump.layout.page_size
        self.frames, self.xarrays = Frames(kernel), XArrays(kernel)
        self._cache = self._caches()
        self._zswap = Zswap(kernel, self.frames, self.xarrays)
        self._devices, self._extents = BlockDevices(kernel), Extents(kernel)
        read = kernel.memory.kernel
        self._mapping = Fields(kernel.prog, read, "struct address_space", {"head": ("i_pages.xa_head",)})

    def _caches(self) -> Cache:
        if self._kernel.builtin("swapper_spaces") is None:
            return SwapTables(self._kernel, self.frames)
        return SwapCache(self._kernel, self.frames, self.xarrays, release_of(self._kernel.info.release))

    @cached_property
    def _zram(self) -> Zram:
        return Zram(self._kernel, self.frames)

    def forget(self) -> None:
        """Forget what may have changed."""
        self.xarrays.forget()
        self._cache.forget()
        self._zswap.forget()

    @cached_property
    def matched(self) -> dict[int, Backing]:
        """The images of a dump, by the number of the area.

        :raises KvmError: as :func:`~kvmd.images.linux.swap.images.match`.
        """
        if not self._files:
            return {}
        known = {each.area.number: each for each in self.known()}
        found = match(self._files, list(known.values()), self._page, self._extents)
        caches = self._cache, self._zswap
        for number, backing in found.items():
            if not compare(self._kernel.memory, self.frames, caches, known[number], backing):
                self.doubtful[number] = known[number], backing
        return found

    @cached_property
    def _lasting(self) -> dict[int, Source]:
        """The areas of a dump."""
        return self._sources()

    def chain(self) -> Chain:
        """What reads slots, from the areas as they are now.

        :raises KvmError: as :attr:`matched`; CORRUPT_DATA, or the fault of a page that describes an area.
        """
        if self._live:
            self.forget()
        sources = self._sources() if self._live else self._lasting
        memory, caches = self._kernel.memory, (self._cache, self._zswap)
        return Chain(memory, caches, sources, page=self._page, given=self._live or bool(self._files))

    def distrust(self, number: int) -> None:
        """Read an area's image no more."""
        source = self._lasting[number]
        if source.backing is not None:
            source.unproven, source.backing = source.backing.store.name, None

    def facts(self) -> dict[int, Facts]:
        """What is known of the areas beside the kernel's list, by the number of the area.

        :raises KvmError: as :meth:`chain`.
        """
        return {source.area.number: _facts(source) for source in self.chain().sources.values()}

    def _sources(self) -> dict[int, Source]:
        known = self.known()
        backings = self._opened(known) if self._live else self.matched
        return {each.area.number: self._source(each, backings.get(each.area.number)) for each in known}

    def _source(self, known: Known, backing: Backing | None) -> Source:
        header = backing.header if backing else known.header
        slots = None
        if known.disk is not None and known.disk.name.startswith(b"zram") and not (self._live and backing):
            slots = self._compressed(known.area, known.disk)
        return Source(known.area, known.path, header, slots, backing)

    def _compressed(self, area: Area, disk: BlockDevice) -> Slots | None:
        """The slots of an area that may lie on a zram device."""
        try:
            device = self._zram.device(disk.disk, disk.private)
        except KvmError as failure:
            return _failing(failure)
        if device is None:
            return None
        return on_zram(device, lambda offset: next(self._extents.runs(area.extents, offset, 1))[0])

    def known(self) -> list[Known]:
        """What the kernel knows of its areas.

        :raises KvmError: CORRUPT_DATA, or the fault of a page that describes an area.
        """
        found = self._areas.areas()
        return [self._describe(area, paths) for paths in ([self._paths()] if found else []) for area in found]

    def _describe(self, area: Area, paths: Paths) -> Known:
        disk = self._devices.read(area.device) if area.device else None
        path = "?"
        with suppress(KvmError):
            path = paths.path(area.place).decode("utf-8", "backslashreplace")
        size: int | None = area.file_size
        if area.partition:
            size = disk.size if disk else None
        return Known(area, size, disk, self._header(area), path)

    def _header(self, area: Area) -> Header | None:
        """The area's header, if it is still in the page cache and the dump has the page."""
        try:
            mapping: Any = self._mapping(area.mapping)
            page, _ = self.xarrays.load(mapping["head"], 0)
            if not page or page & 1 or not self.frames.ready(self.frames.read(page)):
                return None
            data = self._kernel.memory.physical(self.frames.physical(page), self._page)
            return parse(data, self._page, "the page cache")
        except KvmError:
            return None

    @cached_property
    def _stores(self) -> list[tuple[File, Store]]:
        return [(file, Store(file, direct=True)) for file in self._files]

    def _opened(self, known: Sequence[Known]) -> dict[int, Backing]:
        """The running kernel's areas among the files: each the very device or file that the kernel swaps to."""
        found: dict[int, Backing] = {}
        for file, store in self._stores:
            status = os.fstat(file.fd)
            for each in known:
                if _same(each, status):
                    with suppress(KvmError):
                        header = parse(store.read(0, self._page), self._page, file.name)
                        if header.last_page + 1 == each.area.slots:
                            found[each.area.number] = Backing(store, header, self._page)
        return found


def _same(known: Known, status: os.stat_result) -> bool:
    if known.area.partition:
        return stat.S_ISBLK(status.st_mode) and known.disk is not None and status.st_rdev == known.disk.number
    # Some file systems give stat(2) another device number than the kernel's own.
    return stat.S_ISREG(status.st_mode) and (status.st_ino, status.st_size) == (known.area.inode, known.size)


def _facts(source: Source) -> Facts:
    header = source.header
    named = source.backing.store.name if source.backing else "memory" if source.zram else ""
    return (header.uuid, header.label, named) if header else ("", "", named)


def _failing(failure: KvmError) -> Slots:
    def read(_offset: int) -> bytes:
        raise failure

    return read
