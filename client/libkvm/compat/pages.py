"""kvm_walk_pages(3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from libkvm.compat.kd import Kvm, usable
from libkvm.errors import KvmError
from libkvm.records import Page

A = TypeVar("A")


def kvm_walk_pages(kd: Kvm | None, callback: Callable[[Page, A | None], object], arg: A | None = None) -> int:
    """Call back for every page that the kernel's page tables map: FreeBSD's kvm_walk_pages(3).

    Each is reported once, in ascending order of virtual address. What ``callback`` raises ends the walk and is raised.

    :param callback: called with a :class:`libkvm.Page` and ``arg``; 0, None or False ends the walk.
    :return: 1 once all pages have been reported; 0 if ``callback`` ended the walk, and on failure.
    """
    if not callable(callback):
        raise TypeError(f"callback is a function, not {callback!r}")
    if (kd := usable(kd, "kvm_walk_pages")) is None:
        return 0
    with contextlib.closing(kd.kernel.pages()) as pages:
        while True:
            try:
                page = next(pages, None)
            except KvmError as failure:
                kd.hard(failure.text, failure.errno)
                return 0
            if page is None:
                return 1
            if not callback(page, arg):
                return 0
