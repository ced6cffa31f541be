"""Makes a small dump of a large one: what kvmd reads of it, and the kernel's data.

    python tests/guest/slim.py DUMP OUT SWAP[:SWAP...]...

DUMP is an ELF dump with its truth.json beside it. Everything that tests ask is asked of it, drgn's helpers included,
and the pages that were read are kept. What is only searched through (the kernel's image, for things that no symbol
tells of) is kept where it is data that can be written, and where something was found. OUT is KDUMP, its pages as they
are: `xz -9e OUT` makes of it what tests/data holds.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

from drgn import Architecture, Program
from drgn.helpers.linux.fs import for_each_mount, mount_dst
from drgn.helpers.linux.pid import for_each_task
from drgn.helpers.linux.slab import for_each_slab_cache

sys.path.insert(0, os.path.dirname(__file__))
import helpers

from kvmd.errors import KvmError
from kvmd.images.base import File, Files
from kvmd.images.linux.elfcore import ElfLayout
from kvmd.images.linux.image import LinuxImage
from kvmd.images.linux.kimage import KernelImage
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.objects.table import OBJECTS
from kvmd.images.linux.pagetable import WRITE
from kvmd.images.linux.program import open_file
from kvmd.images.linux.scan import recover, retrace
from kvmd.images.linux.scan.search import search
from kvmd.v1 import memory_pb2, process_pb2, stack_pb2

PAGE = 4096
_FINDS = 64  # of a search, whose places are kept
USER = memory_pb2.ADDRESS_SPACE_USER


class Recorder:
    """Notes the pages that are read of any ELF dump, but for searches."""

    def __init__(self) -> None:
        self.pages: set[int] = set()
        self.searching = False
        read, find = ElfLayout.read, KernelImage.find
        recorder = self

        def noted(layout: ElfLayout, address: int, length: int, offset: int, physical: bool) -> bytes:
            if not recorder.searching:
                recorder.note(address, length)
            return read(layout, address, length, offset, physical)

        def quiet(image: KernelImage, wanted: bytes, align: int = 1) -> Iterator[int]:
            image.runs  # noqa: B018 - a cached property: the page tables are needed
            recorder.searching = True
            found = list(find(image, wanted, align))
            recorder.searching = False
            for at in found[:_FINDS]:
                image._memory.kernel(at, len(wanted))
            return iter(found)

        ElfLayout.read, KernelImage.find = noted, quiet  # type: ignore[method-assign]

    def note(self, address: int, length: int) -> None:
        """Keep the pages of a physical range."""
        self.pages.update(range(address // PAGE, (address + length - 1) // PAGE + 1))


def strings(image: LinuxImage, pid: int) -> None:
    """Read a process's strings."""
    for kind in (process_pb2.STRINGS_KIND_ARGUMENTS, process_pb2.STRINGS_KIND_ENVIRONMENT):
        with suppress(KvmError):
            image.strings(pid, kind, 0)


def lists(prog: Program) -> None:
    """Walk what drgn lists whole, as dwarf_truth.py does."""
    for task in for_each_task(prog):
        task.comm.string_()
    for mount in for_each_mount(prog):
        mount_dst(mount)
    for cache in for_each_slab_cache(prog):
        cache.name.string_()


def exercise(image: LinuxImage) -> None:
    """Ask everything."""
    image.info(), image.load_average(), image.cpu_times(), image.cpus(), image.swap_areas()
    list(image.pages(0)), list(image.log()), list(image.files(0))
    with suppress(KvmError):  # which can't be unwound on every architecture
        list(image.stacks(stack_pb2.GetStackRequest()))
    lists(image.kernel.prog)
    image.index_inputs()
    for process in image.processes(process_pb2.GetProcsRequest(threads=True)):
        strings(image, process.pid)
    for name in (*OBJECTS, "__per_cpu_offset", "runqueues", "no_such_symbol", "ext4_fill_super"):
        with suppress(KvmError):
            image.kernel.symbol(name)


def untold(core: File, recorder: Recorder) -> None:
    """Read what is needed without VMCOREINFO: what kvmd finds in memory, and what it needs to make it anew."""
    layout = open_file(core).layout
    read = partial(Memory(open_file(core).make(recover.NOTHING)).attempt, physical=True)
    for _, place in search(read, layout.runs(), (b"OSRELEASE=", retrace.BUILD_ID_NOTE), PAGE):
        recorder.note(place, PAGE)
    ElfLayout._vmcoreinfo = staticmethod(lambda *_: b"")  # type: ignore[method-assign]
    recover._notes = lambda *_: iter(())
    image = LinuxImage(Files(core))
    recorder.searching = True  # for tables of symbols, through all of the image
    image.kernel.written("schedule")
    recorder.searching = False
    list(image.log())
    for name in OBJECTS:
        with suppress(KvmError):
            image.kernel.symbol(name)


def user_pages(image: LinuxImage, truth: dict[str, Any]) -> None:
    """Read the pages of processes that the truth tells of."""
    for page in truth["pages"]:
        with suppress(KvmError):
            image.read(page["vaddr"], PAGE, USER, page["pid"])


def data_pages(image: LinuxImage) -> Iterator[int]:
    """The physical addresses of the image's pages that can be written: of arm64, those after the first gap."""
    kernel = image.kernel
    assert kernel.image is not None
    if kernel.dump.architecture is Architecture.S390X:  # its kernel has all symbols, and nothing is looked for
        # What libkdumpfile reads, too: the lowcore, and its vmcore_info and os_info (arch/s390/include/asm/lowcore.h).
        yield from (0, PAGE)
        for at in (0xE0C, 0xE18):
            place = int.from_bytes(image.read(at, 8, memory_pb2.ADDRESS_SPACE_PHYSICAL), "big")
            yield from (place, place + PAGE)
        return
    if kernel.dump.architecture is Architecture.AARCH64:
        for run in kernel.image.runs[1:]:
            yield from (kernel.memory.translate(at).physical for at in run[::PAGE])
        return
    for page in image.pages(kernel.image.runs[0].start):
        if page.protection & WRITE and kernel.image.holds(page.virtual_address):
            yield from range(page.physical_address, page.physical_address + page.length, PAGE)


def _note(order: str, info: bytes) -> bytes:
    """VMCOREINFO as a note, where libkdumpfile looks for it if there are others."""
    return struct.pack(order + "III", 11, len(info), 0) + b"VMCOREINFO\0\0" + info + bytes(-len(info) % 4)


def write_kdump(layout: ElfLayout, info: bytes, pages: list[int], machine: str, out: str) -> None:
    """Write a KDUMP file, version 6, without compression; the VMCOREINFO is the dump's, or was found in it."""
    size = layout.page_size
    last = max(end for _, end, _ in layout._ranges) // size
    held = {page for start, end, _ in layout._ranges for page in range(start // size, end // size)}
    half = -(-last // (8 * size)) * size
    bitmaps = [bytearray(half), bytearray(half)]
    for bitmap, numbers in zip(bitmaps, (held, pages), strict=True):
        for page in numbers:
            bitmap[page // 8] |= 1 << page % 8
    notes = layout.notes if layout.vmcoreinfo else _note(layout.order, info) + layout.notes
    sub_pages = 1 + -(-(len(info) + len(notes)) // size)
    names = b"".join(name.encode().ljust(65, b"\0") for name in ("Linux", "", "", "", machine, ""))
    order = layout.order
    head = struct.pack(order + "8si390s6x16x", b"KDUMP   ", 6, names)
    head += struct.pack(order + "IiiIIIIIIi", 0, size, sub_pages, 2 * half // size, min(last, 2**32 - 1), 0, 0, 0, 0, 0)
    at = 2 * size
    sub = struct.pack(order + "Qii6Q", 0, 31, 0, 0, 0, at, len(info), at + len(info), len(notes))
    sub += struct.pack(order + "5Q", 0, 0, 0, 0, last)
    table = (1 + sub_pages) * size + 2 * half
    data = table + 24 * len(pages)
    with open(out, "wb") as file:
        file.write(head.ljust(size, b"\0") + sub.ljust(size, b"\0"))
        file.write((info + notes).ljust((sub_pages - 1) * size, b"\0"))
        file.write(bitmaps[0] + bitmaps[1])
        for index in range(len(pages)):
            file.write(struct.pack(order + "QIIQ", data + index * size, size, 0, 0))
        for page in pages:
            file.write(layout.read(page * size, size, 0, True))


def main() -> None:
    """Write the file."""
    dump, out, *swaps = sys.argv[1:]
    recorder = Recorder()
    core = File(os.open(dump, os.O_RDONLY), dump)
    areas = [[File(os.open(path, os.O_RDONLY), path) for path in each.split(":")] for each in swaps]
    image = LinuxImage(Files(core, swap=tuple(areas[0])))
    exercise(image)
    with open(os.path.join(os.path.dirname(dump), "truth.json"), encoding="utf-8") as file:
        truth = json.load(file)
    for swap in areas:
        with suppress(KvmError):
            user_pages(LinuxImage(Files(core, swap=tuple(swap))), truth)
    helpers.with_kvmd(dump)
    for address in data_pages(image):
        recorder.note(address, PAGE)
    layout = image.kernel.dump.layout
    assert isinstance(layout, ElfLayout)
    untold(core, recorder)
    size = layout.page_size
    pages = sorted({page * PAGE // size for page in recorder.pages})
    kept = [page for page in pages if layout.trouble(page * size) is None]
    write_kdump(layout, image.kernel.info.text, kept, truth["machine"], out)


if __name__ == "__main__":
    main()
