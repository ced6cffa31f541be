"""The images of swap areas that were given with a dump, each matched to the kernel's own areas.

An image is the content of a partition or swap file, or that of the device that a swap file lies on. It is read only if
its header is that of the area, as far as the kernel tells: docs/adr/0016-swap.md says what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File
from kvmd.images.linux.swap.devices import BlockDevice
from kvmd.images.linux.swap.extents import Extents
from kvmd.images.linux.swap.header import Header, parse
from kvmd.images.linux.swap.store import Store
from kvmd.images.linux.swapinfo import Area

_TOLD = 2  # areas that a refused image is told of


class Known(NamedTuple):
    """What the kernel knows of an area.

    :ivar size: of the partition or the file, in bytes; None if it isn't known.
    :ivar disk: the device that it is, or lies on.
    :ivar header: the area's header, if the kernel has it in memory.
    :ivar path: as /proc/swaps shows it.
    """

    area: Area
    size: int | None
    disk: BlockDevice | None
    header: Header | None
    path: str

    @property
    def label(self) -> str:
        """For messages."""
        return f"swap area {self.area.number} ({self.path})"


class Backing(NamedTuple):
    """An area's slots in a file.

    :ivar extents: where they lie on the device that the file is an image of; None: in order.
    """

    store: Store
    header: Header
    page: int
    extents: Callable[[int, int], Sequence[tuple[int, int]]] | None = None

    def read(self, offset: int, count: int) -> bytes:
        """Read so many slots; at most a chunk.

        :raises KvmError: SHORT_FILE, SOURCE_IO, CORRUPT_DATA.
        """
        if self.extents is None:
            return self.store.read(offset * self.page, count * self.page)
        runs = self.extents(offset, count)
        return b"".join(self.store.read(block * self.page, length * self.page) for block, length in runs)


class Given:
    """One file that was given."""

    def __init__(self, file: File, page: int) -> None:
        self.name = file.name
        self._page = page
        self.store = Store(file)

    @cached_property
    def header(self) -> Header:
        """Its own header.

        :raises KvmError: CORRUPT_IMAGE, UNSUPPORTED_FORMAT, TRUNCATED_IMAGE: the file begins with no swap area.
        """
        if self.store.size < self._page:
            message = f"{self.name}: {self.store.size} bytes, which is less than a swap area's header"
            raise error(Reason.TRUNCATED_IMAGE, message, path=self.name)
        return parse(self.store.read(0, min(self.store.size, 1 << 16)), self._page, self.name)

    def backing(self, known: Known, extents: Extents) -> Backing:
        """This file as an area's.

        :raises KvmError: why it is not.
        """
        try:
            header = self.header
        except KvmError:
            size = known.disk.size if known.disk else None
            if known.area.partition or size != self.store.size or not known.area.extents:
                raise
            return self._on_device(known, extents)
        needed = (header.last_page + 1) * self._page
        if self.store.size < needed:
            message = f"{self.name}: truncated: {self.store.size} bytes of {needed}"
            raise error(Reason.TRUNCATED_IMAGE, message, path=self.name)
        self._compare(known, header)
        if known.size is not None and known.size // self._page != self.store.size // self._page:
            raise self._wrong(known, f"its size is {self.store.size}, the kernel's {known.size}")
        if known.area.slots != header.last_page + 1:
            message = f"{self.name}: {known.label} leaves out blocks of the file; name the device that it lies on"
            raise error(Reason.UNSUPPORTED_FORMAT, message, path=self.name)
        return Backing(self.store, header, self._page)

    def _on_device(self, known: Known, extents: Extents) -> Backing:
        def runs(offset: int, count: int) -> Sequence[tuple[int, int]]:
            return list(extents.runs(known.area.extents, offset, count))

        ((block, _),) = runs(0, 1)
        header = parse(self.store.read(block * self._page, self._page), self._page, self.name)
        self._compare(known, header)
        return Backing(self.store, header, self._page, runs)

    def _compare(self, known: Known, header: Header) -> None:
        theirs = known.header
        if theirs is not None and theirs.uuid != header.uuid:
            raise self._wrong(known, f"its UUID is {header.uuid}, the kernel's {theirs.uuid}")
        if theirs is not None and theirs.label != header.label:
            raise self._wrong(known, f"its label is {header.label!r}, the kernel's {theirs.label!r}")
        last = known.area.slots - 1
        if header.last_page < last or (known.area.partition and header.last_page != last):
            raise self._wrong(known, f"its last page is {header.last_page}, the kernel's {last}")
        if header.last_page == last and header.last_page - header.bad_pages != known.area.pages:
            raise self._wrong(known, f"it has {header.bad_pages} bad pages, the kernel's {last - known.area.pages}")

    def _wrong(self, known: Known, why: str) -> KvmError:
        message = f"{self.name}: not the image of {known.label}: {why}"
        return error(Reason.SWAP_FOREIGN, message, path=self.name)


def match(files: Sequence[File], areas: Sequence[Known], page: int, extents: Extents) -> dict[int, Backing]:
    """Match files to areas, by the number of the area.

    :raises KvmError: SWAP_FOREIGN, TRUNCATED_IMAGE, UNSUPPORTED_FORMAT or CORRUPT_IMAGE, naming the file that is no
        swap area, none of the kernel's, one that another file is, or could be either of two.
    """
    found: dict[int, Backing] = {}
    for file in files:
        for number, backing in _fits(Given(file, page), areas, extents).items():
            if number in found:
                message = f"{file.name}: the same swap area as {found[number].store.name}"
                raise error(Reason.SWAP_FOREIGN, message, path=file.name)
            found[number] = backing
    return found


def _fits(given: Given, areas: Sequence[Known], extents: Extents) -> dict[int, Backing]:
    """The areas that a file is the image of: one, or several files on one device."""
    fits: dict[int, Backing] = {}
    refusals: list[KvmError] = []
    for known in areas:
        try:
            fits[known.area.number] = given.backing(known, extents)
        except KvmError as e:
            refusals.append(e)
    if not fits:
        raise _refusal(given.name, refusals)
    if len(fits) > 1 and any(backing.extents is None for backing in fits.values()):
        both = " and ".join(known.label for known in areas if known.area.number in fits)
        message = f"{given.name}: could be {both} alike, for the dump has not kept their headers"
        raise error(Reason.SWAP_FOREIGN, message, path=given.name)
    return fits


def _refusal(name: str, refusals: Sequence[KvmError]) -> KvmError:
    """Why a file is no area's image: what is wrong with itself, else how it differs from each."""
    if not refusals:
        return error(Reason.SWAP_FOREIGN, f"{name}: the kernel has no swap area", path=name)
    for refusal in refusals:
        if refusal.reason is not Reason.SWAP_FOREIGN:
            return refusal
    # The nearest first: what has the right UUID, or none that is known, is rather what was meant.
    told = sorted((refusal.message for refusal in refusals), key=lambda message: "its UUID is" in message)
    rest = f"; nor of {len(told) - _TOLD} others" if len(told) > _TOLD else ""
    return error(Reason.SWAP_FOREIGN, "; ".join(told[:_TOLD]) + rest, path=name)
