"""The bounds of numbers that a request can carry: what does not fit is an error, and never another number."""

from __future__ import annotations

import operator
from typing import SupportsIndex

from libkvm.errors import Reason, error


def address_number(value: SupportsIndex) -> int:
    """Answer an address.

    :raises RequestError: it is not one of 64 bits.
    """
    number = operator.index(value)
    if not 0 <= number < 2**64:
        raise error(Reason.BAD_ARGUMENT, f"address {number:#x} is not one of 64 bits")
    return number


def length_number(value: SupportsIndex, bound: int = 2**64) -> int:
    """Answer a length in bytes.

    :raises RequestError: it is negative, or not below the bound.
    """
    number = operator.index(value)
    if not 0 <= number < bound:
        raise error(Reason.BAD_ARGUMENT, f"length {number} is not between 0 and {bound}")
    return number


def id_number(value: SupportsIndex, bits: int = 32) -> int:
    """Answer a signed number of so many bits: the id of a process, user, group or terminal.

    :raises RequestError: it has more bits.
    """
    number = operator.index(value)
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise error(Reason.BAD_ARGUMENT, f"{number} is no id of a process, user, group or terminal")
    return number
