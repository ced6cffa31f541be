"""The first page of a swap area, as mkswap(8) writes it. Pure.

Source: Linux include/linux/swap.h (union swap_header) and mm/swapfile.c (read_swap_header): the page ends in
``SWAPSPACE2``; 1024 bytes in are version, last page and number of bad pages, then UUID and label.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kvmd.errors import KvmError, Reason, error

_MAGIC = b"SWAPSPACE2"
_SLEEPS = (b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001")
_AT = 1024
_FIELDS = struct.Struct("III16s16s")
PAGE_SIZES = (4096, 16384, 65536)


class Header(NamedTuple):
    """What a header says.

    :ivar last_page: the number of the last page; the header is page 0.
    :ivar order: ``<`` or ``>``, the byte order of the kernel that may use it.
    """

    page_size: int
    order: str
    last_page: int
    bad_pages: int
    uuid: str
    label: str


def parse(page: bytes, page_size: int, name: str) -> Header:
    """Parse the first page.

    :param page_size: the kernel's.
    :param name: of the file, for messages.
    :raises KvmError: CORRUPT_IMAGE or UNSUPPORTED_FORMAT, naming the file.
    """
    if page[page_size - 10 : page_size] != _MAGIC:
        raise _foreign(page, page_size, name)
    for order in "<>":
        version, last, bad, identity, label = struct.unpack_from(order + _FIELDS.format, page, _AT)
        if version == 1:
            break
    else:
        raise _bad(name, "its version is not 1")
    if not last or bad > last:
        raise _bad(name, f"a last page of {last} with {bad} bad ones makes no sense")
    text = label.split(b"\0")[0].decode("utf-8", "replace")
    return Header(page_size, order, last, bad, _uuid(identity) if any(identity) else "", text)


def _uuid(identity: bytes) -> str:
    return "-".join(identity[start:end].hex() for start, end in ((0, 4), (4, 6), (6, 8), (8, 10), (10, 16)))


def _bad(name: str, why: str) -> KvmError:
    return error(Reason.CORRUPT_IMAGE, f"{name}: the swap area's header is wrong: {why}", path=name)


def _foreign(page: bytes, page_size: int, name: str) -> KvmError:
    """What the file is instead."""
    tail = page[page_size - 10 : page_size]
    if tail == b"SWAP-SPACE":
        return error(Reason.UNSUPPORTED_FORMAT, f"{name}: a swap area of the old kind, version 0", path=name)
    if tail.startswith(_SLEEPS):
        message = f"{name}: the swap area holds a suspended system, and its header with it"
        return error(Reason.UNSUPPORTED_FORMAT, message, path=name)
    for size in PAGE_SIZES:
        if page[size - 10 : size] == _MAGIC:
            message = f"{name}: a swap area with pages of {size} bytes, and the kernel's have {page_size}"
            return error(Reason.UNSUPPORTED_FORMAT, message, path=name)
    return error(Reason.UNSUPPORTED_FORMAT, f"{name}: no swap area, for it has no SWAPSPACE2 signature", path=name)
