"""What an open asks for: kvm_open(3)'s arguments, understood. Pure."""

from __future__ import annotations

from typing import NamedTuple

from kvmd.errors import Reason, error
from kvmd.images.base import Kind

O_RDWR = 2
KVM_NO_FILES = 0x80000000
KVM_ANY_SWAP = 0x40000000
_MOST_SWAP = 32
"""A kernel has no more swap areas (1 << MAX_SWAPFILES_SHIFT)."""
PROCFS = "procfs"
"""The name of what KVM_NO_FILES opens."""


class Wanted(NamedTuple):
    """What an open asks for, once its flags have been understood.

    :ivar name: the dump's name as the client gave it; of the running kernel, the policy's name of the image.
    :ivar swapfiles: the names of the dump's swap images.
    :ivar any_swap: as of :class:`kvmd.images.base.Files`.
    """

    kind: Kind
    name: str
    execfile: str | None = None
    writable: bool = False
    dump_offset: int | None = None
    swapfiles: tuple[str, ...] = ()
    any_swap: bool = False

    @property
    def verbs(self) -> tuple[str, ...]:
        """What the policy must allow."""
        return ("info", "write") if self.writable else ("info",)


def understood(
    execfile: str | None, corefile: str | None, swapfiles: tuple[str, ...], flags: int, dump_offset: int | None = None
) -> Wanted:
    """Understand the arguments.

    :raises KvmError: BAD_FLAGS, UNSUPPORTED.
    """
    if flags & KVM_NO_FILES:  # wins over all other checks, as in NetBSD
        return Wanted(Kind.PROCFS, PROCFS)
    if flags & ~(O_RDWR | KVM_ANY_SWAP):
        message = f"flags {flags:#x}: only O_RDONLY, O_RDWR and KVM_ANY_SWAP are accepted"
        raise error(Reason.BAD_FLAGS, message, flags=f"{flags:#x}")
    if len(swapfiles) > _MOST_SWAP:
        raise error(Reason.BAD_ARGUMENT, f"{len(swapfiles)} swap images, and {_MOST_SWAP} is the most")
    if swapfiles and corefile in (None, "", "/proc/kcore", "/dev/mem"):
        message = "the running kernel's swap areas are opened by the daemon; leave swapfile out"
        raise error(Reason.BAD_ARGUMENT, message)
    writable = bool(flags & O_RDWR)
    if corefile in (None, "", "/proc/kcore"):
        return Wanted(Kind.LIVE, "live", execfile, writable)
    if corefile == "/dev/mem":
        return Wanted(Kind.MEM, "live:mem", execfile, writable)
    # Which is never written, whatever the flags.
    any_swap = bool(flags & KVM_ANY_SWAP)
    return Wanted(Kind.DUMP, corefile or "", execfile, dump_offset=dump_offset, swapfiles=swapfiles, any_swap=any_swap)
