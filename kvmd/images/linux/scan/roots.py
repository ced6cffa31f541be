"""A kernel's top-level page table, found without a symbol that says where: by what it must map.

It must lead from the kernel's first and last code and its symbol tables, by their addresses, to where these are in
physical memory, all at one distance; lie in the kernel's image itself, at that distance, as tables of processes do not;
and map itself a second time, with the rest of memory, as the tables that a kernel starts with do not.

Source: Linux arch/x86/kernel/head_64.S (init_top_pgt), arch/arm64/kernel/vmlinux.lds.S (swapper_pg_dir), and for the
mapping of all memory arch/x86/mm/kaslr.c (its place is a multiple of PUD_SIZE) and arch/arm64/mm/init.c
(ARM64_MEMSTART_ALIGN: 512 MiB or more).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import CHUNK
from kvmd.images.linux.order import words
from kvmd.images.linux.pagetable import PageTables, Paging
from kvmd.images.linux.scan.search import Read, at_most, readable

_ALL = (1 << 64) - 1
_PAGE = 4096  # in which memory is there, or isn't
_MOST = 16  # tables that map an image: the kernel's own, and one that it started with
_SLOTS = 1 << 16  # entries that may map all memory, at most: 64 TiB in pages of 4 KiB
_TABLES = 1 << 12  # that are looked at for them
_LARGEST_IMAGE = 1 << 29
_ALIGN, _LARGEST = 1 << 29, 1 << 30  # of the distance of virtual and physical addresses there
_KERNEL_HALF = 1 << 63


class Image(NamedTuple):
    """What is known of a kernel's image.

    :ivar stext: the virtual address at which its code begins.
    :ivar etext: at which it ends.
    :ivar place: a physical address in it.
    """

    stext: int
    etext: int
    place: int


class Root(NamedTuple):
    """A top-level page table.

    :ivar physical: its address.
    :ivar distance: virtual less physical address of the kernel's image.
    :ivar linear: the same of the mapping of all memory.
    """

    image: Image
    physical: int
    distance: int
    linear: int
    tables: PageTables

    def maps(self, physical: int) -> bool:
        """Whether a physical address is mapped as a part of the image that follows its code."""
        virtual = physical + self.distance & _ALL
        inside = self.image.etext <= virtual < self.image.stext + _LARGEST_IMAGE
        return inside and _leads(self.tables, self.physical, virtual) == physical


def roots(read: Read, runs: Iterable[range], image: Image, paging: Paging) -> Iterator[Root]:
    """Give the top-level tables of a layout that are the kernel's of an image.

    :param read: reads physical memory.
    :param runs: where to look, in pages.
    :raises KvmError: AMBIGUOUS if too many could be.
    """

    def physical(address: int, length: int) -> bytes:
        data = read(address, length)
        if data is None:
            raise error(Reason.BEYOND_DUMP, f"no memory at {address:#x}", address=address)
        return data

    tables = PageTables(physical, paging)
    likely = (_of_image(tables, root, image) for root in _likely(read, runs, image.stext, paging))
    for found in at_most(_MOST, filter(None, likely), "tables that map the kernel's image"):
        linear = next(_linear(physical, found), None)
        if linear is not None:
            yield found._replace(linear=linear)


def _of_image(tables: PageTables, root: int, image: Image) -> Root | None:
    """The table at an address, if it maps an image that it lies in."""
    start, last = _leads(tables, root, image.stext), image.etext - 1
    if start is None:
        return None
    distance = image.stext - start & _ALL
    found = Root(image, root, distance, 0, tables)
    whole = distance % tables.paging.page_size == 0 and _leads(tables, root, last) == last - distance & _ALL
    return found if whole and found.maps(image.place) and found.maps(root) else None


def _likely(read: Read, runs: Iterable[range], address: int, paging: Paging) -> Iterator[int]:
    """Pages whose entry for an address leads on, if they are top-level tables."""
    level, size = paging.levels, paging.page_size
    index = paging.index(address, level)
    for run in runs:
        for start in range(run.start & -CHUNK, run.stop, CHUNK):
            low = max(start, run.start)
            for at, data in readable(read, low, min(start + CHUNK, run.stop) - low, _PAGE):
                skipped = -at % size
                entries = array("Q", data[skipped : len(data) & -8])[index :: size // 8]
                for number, entry in enumerate(entries):
                    if entry and paging.table(entry, level) is not None:
                        yield at + skipped + number * size


def _leads(tables: PageTables, root: int, address: int) -> int | None:
    """Where tables lead from an address of the kernel's; None if nowhere."""
    if address < _KERNEL_HALF:
        return None
    try:
        return tables.translate(root, address).physical
    except KvmError:
        return None


def _linear(read: Callable[[int, int], bytes], found: Root) -> Iterator[int]:
    """Give the distances, but for the image's, at which a table maps itself and another place of the image."""
    for at, size in islice(_slots(read, found), _SLOTS):
        distance = at - (found.physical & -size)
        if distance % _ALIGN or distance & _ALL == found.distance:
            continue
        if all(_leads(found.tables, found.physical, it + distance) == it for it in (found.physical, found.image.place)):
            yield distance


def _slots(read: Callable[[int, int], bytes], found: Root) -> Iterator[tuple[int, int]]:
    """Give what entries could map, and how much, ascending: those that map no more than the mapping is aligned to."""
    paging = found.tables.paging
    rest = [(found.physical, paging.levels, paging.base)]
    for _ in range(_TABLES):
        if not rest:
            return
        table, level, base = rest.pop()
        size = 1 << paging.shift(level)
        try:
            entries = words(read(table, 8 * paging.count(level)), paging.order)
        except KvmError:  # a table that can't be read maps nothing
            continue
        used = [(base + number * size, entry) for number, entry in enumerate(entries) if entry]
        if size <= _LARGEST:
            yield from ((at, size) for at, _ in used if at >= paging.bottom)
            continue
        below = [(lower, level - 1, at) for at, entry in used if (lower := paging.table(entry, level)) is not None]
        rest.extend(one for one in reversed(below) if one[2] + size > paging.bottom)
