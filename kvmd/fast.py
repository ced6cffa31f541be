"""The fast path between a client and its image's worker: messages of a SEQPACKET socket, and shared memory.

A request is a header, :data:`REQUEST`, and the ranges to read, each a :data:`RANGE`; their lengths add up to at most
:data:`HALF`. An answer is a header, :data:`ANSWER`, the indexes (u32) of the ranges that were not read, and the bytes
of all others, in order; more than :data:`INLINE` of them lie at the beginning of the half of the window that the
request named, or in the page cache if the request said that the client looks there (:data:`CACHED`). Why a range was
not read isn't said here: the client asks the daemon for it, whose errors are the only ones there are. All numbers are
little-endian; answers may come in another order than requests.

The window and the page cache are memfds which no client can write (F_SEAL_FUTURE_WRITE). The cache of a dump is
``slots`` tags (u64), then as many pages. A page of kernel virtual memory may be in any of :data:`WAYS` slots
(:func:`places`). A tag is the page's number and a sequence number that is never 0; 0 is an empty slot. A reader copies
first and then looks whether the tag is still the one that it found before: the worker clears the tag before it writes
over a page, and counts up.

Pure: standard library only, shared with libkvm as :mod:`kvmd.errors` is.
"""

from __future__ import annotations

import struct

SUFFIX = ".fast"
"""What the path of the public socket is followed by in that of the socket where tickets are handed in."""
TICKET = 32
"""The length of a ticket in bytes."""

PAGE = 4096
INLINE = 16 << 10
HALF = 1 << 20
COUNTS = struct.Struct("<QQ")
"""At :data:`NOTES`: how many requests the worker has answered, and with how many bytes."""
NOTES = 2 * HALF
"""Where the window's last page begins, which the daemon can write, too."""
ENDED = NOTES + 64
"""Where the daemon puts a 1 (u64) when it ends the link: from then on nothing is to be read from the cache either."""
WINDOW = NOTES + PAGE
MOST_RANGES = 8192

REQUEST = struct.Struct("<IBBHi")
"""Number, address space, half of the window, 0 or :data:`CACHED`, process id."""
CACHED = 1
"""That what is read may be left in the page cache, where the client looks before it asks again without this."""
RANGE = struct.Struct("<QI")
"""Address, length."""
ONE = struct.Struct("<IBBHiQI")
"""A request of one range."""
ANSWER = struct.Struct("<IIII")
"""The request's number, how many ranges were not read, how many bytes were; and one more than the slot of the page
that was read from if it was a single one, 1 if all of more than :data:`INLINE` bytes is in the page cache, else 0."""
MOST_REQUEST = REQUEST.size + MOST_RANGES * RANGE.size
MOST_ANSWER = ANSWER.size + 4 * MOST_RANGES + INLINE

WAYS = 8
_SEQUENCE = 12
SEQUENCES = (1 << _SEQUENCE) - 1


def slots(size: int) -> int:
    """How many slots a page cache has that may take so many bytes: a power of two, whose tags fill pages; or 0."""
    most = size // (PAGE + 8)
    return 1 << most.bit_length() - 1 if most >= PAGE // 8 else 0


def cache_size(count: int) -> int:
    """The size in bytes of a page cache with so many slots."""
    return count * (PAGE + 8)


def places(page: int, count: int) -> range:
    """The slots that may hold a page, of a cache with so many: the one to try first, and one in each other way.

    Pages that follow one another have first slots that do, so that a run of them is mostly one piece of memory.
    """
    first = page + (page >> 16) * 2539 & count - 1
    return range(first, first + count, count // WAYS)


def tag(page: int, sequence: int) -> int:
    """The tag of a page in a slot that has been filled so many times."""
    return page << _SEQUENCE | sequence % SEQUENCES + 1


def first_tags(page: int, count: int) -> range:
    """The tags of pages that follow one another, in slots that have not been filled before."""
    return range(tag(page, 0), tag(page + count, 0), 1 << _SEQUENCE)


def tagged(word: int) -> int:
    """The page of a tag; of an empty slot's it is 0, which is no page of a kernel's."""
    return word >> _SEQUENCE
