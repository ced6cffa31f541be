"""The kernel of a dump without VMCOREINFO: the note's text as it lies in memory, else one that is made anew.

What is found counts if the page tables that it names lead to a kernel of the release that it names.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from drgn import Architecture

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import File, Progress, Unpack, unheard
from kvmd.images.linux.layout import DumpLayout
from kvmd.images.linux.memory import Memory
from kvmd.images.linux.program import Dump, open_file
from kvmd.images.linux.scan import rebuild, retrace
from kvmd.images.linux.scan.kallsyms import BANNER, candidates
from kvmd.images.linux.scan.names import DIGITS
from kvmd.images.linux.scan.search import PLACES, Read, at_most, search, window
from kvmd.images.linux.vmcoreinfo import VmcoreInfo

NOTHING = (
    b"OSRELEASE=6.0.0\nPAGESIZE=4096\nSYMBOL(swapper_pg_dir)=ffffffff80000000\n"
    b"NUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0\nNUMBER(PHYS_OFFSET)=0\n"  # of arm64
)
"""What drgn takes for VMCOREINFO where physical memory alone is read."""
_HEAD = b"OSRELEASE="
_TEXT = re.compile(rb"OSRELEASE=[!-~]+\n[\n -~]*\n")
_TEXT_MAX = 1 << 14  # VMCOREINFO_BYTES is a page, of 64 KiB at most; its text has 4 KiB
_NEEDED = {"swapper_pg_dir", "_stext", "init_uts_ns"}
_TEXTS = 64  # texts that may be tried
_BANNER = re.compile(re.escape(BANNER) + rb"[^\n\0]{1,500}\n\0")
_BANNERS = 64
_REACH = 64 << 20  # bytes; linux_banner and kallsyms are both read-only data of the kernel, which lies in one piece
_PAGE = 4096
_UTS = 400  # bytes of init_uts_ns: a counter, and six names of 65

Make = Callable[[bytes], Dump]
"""Opens a dump with a VMCOREINFO text."""


def open_dump(file: File, progress: Progress = unheard, unpacker: Callable[[], Unpack] | None = None) -> Dump:
    """Open a dump as the kernel that its VMCOREINFO describes, or that is found in it.

    :param progress: is told how far the search has come.
    :param unpacker: see :attr:`kvmd.images.base.Files.unpacker`.
    :raises KvmError: as :func:`~kvmd.images.linux.program.open_file`; NO_VMCOREINFO if it has none and no kernel is
        found, AMBIGUOUS if several are.
    """
    opened = open_file(file, unpacker)
    try:
        text = opened.layout.vmcoreinfo or _found(opened.layout, opened.make, progress)
        return opened.make(text)
    except KvmError as e:
        e.metadata.setdefault("path", file.name)
        raise


def _found(layout: DumpLayout, make: Make, progress: Progress) -> bytes:
    read = partial(Memory(make(NOTHING)).attempt, physical=True)
    runs = list(layout.runs())
    places = _places(read, runs, progress)
    found = _fitting(make, _notes(read, places[_HEAD])) or _fitting(make, _rebuilt(read, runs, places[BANNER]))
    if len(found) > 1:
        message = "no VMCOREINFO, and several kernels lie in its memory"
        raise error(Reason.AMBIGUOUS, f"the dump has {message}; dump the guest with vmcoreinfo=on")
    if not found:
        message = "the dump has no VMCOREINFO, and no kernel was found in its memory"
        raise error(Reason.NO_VMCOREINFO, f"{message}; dump the guest with vmcoreinfo=on")
    return found[0]


def _places(read: Read, runs: list[range], progress: Progress) -> dict[bytes, list[int]]:
    """Where there is what a kernel has, in one look through memory."""
    places: dict[bytes, list[int]] = {_HEAD: [], BANNER: []}
    total = sum(run.stop - run.start for run in runs)
    found = search(read, runs, tuple(places), _PAGE, lambda done: progress(done, total))
    for string, place in at_most(PLACES, found, "beginnings of kernels' texts"):
        places[string].append(place)
    return places


def _notes(read: Read, places: list[int]) -> Iterator[bytes]:
    for place in places:
        text = _TEXT.match(window(read, place, place + _TEXT_MAX, _PAGE))
        if text is not None and VmcoreInfo.parse(text[0]).symbols().keys() >= _NEEDED:
            yield text[0]


def _rebuilt(read: Read, runs: list[range], places: list[int]) -> Iterator[bytes]:
    """Texts of the kernels that have one of some banners: kallsyms are looked for near these."""
    whole = (place for place in places if _BANNER.match(window(read, place, place + 512, 1)))
    banners = sorted(at_most(_BANNERS, whole, "banners of kernels"))
    digits = (place for _, place in search(read, _near(runs, banners), (DIGITS,), _PAGE))
    for symbols in candidates(read, at_most(PLACES, digits, "digits in a row"), _PAGE):
        if rebuild.told(symbols):
            yield from rebuild.texts(read, symbols, banners)
        else:
            yield from retrace.texts(read, _near(runs, [symbols.place]), symbols, banners)


def _near(runs: list[range], banners: list[int]) -> Iterator[range]:
    """The parts of memory that may hold tables of these banners' kernels."""
    spans: list[range] = []
    for banner in banners:
        low, high = max(banner - _REACH, 0) & -_PAGE, banner + _REACH & -_PAGE
        if spans and low <= spans[-1].stop:
            low = spans.pop().start
        spans.append(range(low, high))
    for run in runs:
        for span in spans[max(bisect_right(spans, run.start, key=lambda span: span.start) - 1, 0) :]:
            if span.start >= run.stop:
                break
            if max(run.start, span.start) < min(run.stop, span.stop):
                yield range(max(run.start, span.start), min(run.stop, span.stop))


def _fitting(make: Make, texts: Iterable[bytes]) -> list[bytes]:
    """Those that are a kernel's, each once; of one that another continues (a crash adds to it) the longer."""
    found: list[bytes] = []
    tried = set(at_most(_TEXTS, texts, "descriptions of kernels"))
    for text in sorted(tried, key=len, reverse=True):
        if not any(longer.startswith(text) for longer in found) and _fits(make, text):
            found.append(text)
    return found


def _fits(make: Make, text: bytes) -> bool:
    """Whether the page tables that a text names lead to the release that it names."""
    try:
        dump = make(text)
        memory, info = Memory(dump), dump.vmcoreinfo
        uts = info.symbol("init_uts_ns") or 0
        names = [memory.kernel(uts, _UTS)]
        # libkdumpfile finds page tables of its own, and does not mind what the text says.
        if memory.tables is not None:
            names.append(memory.physical(memory.translate(uts).physical, _UTS))
        elif dump.architecture is Architecture.X86_64:
            return False
    except KvmError:
        return False
    return all(b"\0" + info.release.encode() + b"\0" in name for name in names)
