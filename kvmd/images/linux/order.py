"""The byte order of a kernel and of the headers of its dump, as struct writes it: ``<`` or, of s390x, ``>``."""

from __future__ import annotations

import struct
import sys
from typing import Literal

from drgn import Platform, PlatformFlags

from kvmd.images.base import ByteOrder

Order = Literal["<", ">"]
LITTLE: Order = "<"
BIG: Order = ">"
NATIVE = LITTLE if sys.byteorder == "little" else BIG
NAMES: dict[Order, ByteOrder] = {LITTLE: "little", BIG: "big"}


def order_of(platform: Platform | None) -> Order:
    """The byte order of a platform."""
    return BIG if platform and not platform.flags & PlatformFlags.IS_LITTLE_ENDIAN else LITTLE


def number(data: bytes, order: Order) -> int:
    """All of some bytes as one unsigned number."""
    return int.from_bytes(data, NAMES[order])


def byte_of(bit: int, order: Order) -> int:
    """Which byte of a bitmap in words of 64 bits has a bit; its place there is the same in both orders."""
    return bit // 8 ^ (7 if order == BIG else 0)


def words(data: bytes, order: Order) -> tuple[int, ...]:
    """Bytes as words of 64 bits; their length is a multiple of 8."""
    return struct.unpack(f"{order}{len(data) // 8}Q", data)
