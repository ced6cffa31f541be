"""kvm_getswapinfo(3)."""

from __future__ import annotations

from collections.abc import Iterable

from libkvm.compat.kd import Kvm, open_handle
from libkvm.kernel import Kernel
from libkvm.records import SwapArea


class SwapInfo(list[SwapArea]):
    """The swap areas, and beside them what C puts into the slot after the last: the grand total.

    :ivar size_bytes: of all areas.
    :ivar used_bytes: of all areas.
    """

    def __init__(self, areas: Iterable[SwapArea] = ()) -> None:
        super().__init__(areas)
        self.size_bytes = sum(area.size_bytes for area in self)
        self.used_bytes = sum(area.used_bytes for area in self)


def kvm_getswapinfo(kd: Kvm | None, flags: int = 0) -> SwapInfo | None:
    """List the swap areas: FreeBSD's kvm_getswapinfo(3).

    :param flags: FreeBSD's SWIF_DEV_PREFIX, which has no effect: names are whole paths.
    :return: the areas, their sizes in bytes, with the total as ``size_bytes`` and ``used_bytes``; None on failure.
    """
    if (kd := open_handle(kd)) is None:
        return None
    areas = kd.asked(Kernel.swap_areas)
    return None if areas is None else SwapInfo(areas)
