"""The arguments of open, as a daemon wants them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from kvmd.v1.kvm_service_pb2 import OpenRequest
from libkvm.bounds import length_number
from libkvm.errors import Reason, error

KVM_NO_FILES = 0x80000000
"""A flag of kvm_openfiles(3): open no file at all."""

KVM_ANY_SWAP = 0x40000000
"""A flag of kvm_open(3), kvmd's own: believe swap images that nothing in the dump shows to be of its moment."""

Name = str | os.PathLike[str]
Swap = Name | Sequence[Name] | None


def open_request(  # noqa: PLR0913 - all that kvm_open(3) takes
    corefile: Name | None,
    execfile: Name | None,
    swapfile: Swap,
    flags: int,
    *,
    local: bool,
    dump_offset: int | None = None,
) -> OpenRequest:
    """Build the request of Open.

    :param swapfile: one name, several joined by ``:``, or a sequence of names.
    :param flags: open(2)'s, KVM_ANY_SWAP, or KVM_NO_FILES; only the low 32 bits count, as of a C int.
    :param dump_offset: where in a dump device's image a NetBSD kernel left its dump; None: the image is a file's.
    :param local: whether the daemon sees this host's files, so that relative names mean something to it.
    :raises RequestError: a name is not valid text, or there can be no such offset.

    With KVM_NO_FILES nothing else counts, as in NetBSD: names are neither looked at nor sent.
    """
    flags &= 0xFFFFFFFF
    if flags & KVM_NO_FILES:
        return OpenRequest(flags=KVM_NO_FILES)
    core = None if corefile is None else _path(corefile, local)
    exe = None if execfile is None else _path(execfile, local)
    swap = [_path(name, local) for name in _split(swapfile)]
    if dump_offset is not None:
        dump_offset = length_number(dump_offset)
    try:
        return OpenRequest(corefile=core, execfile=exe, swapfiles=swap, flags=flags, dump_offset=dump_offset)
    except UnicodeEncodeError as failure:
        raise error(Reason.BAD_ARGUMENT, f"file name {failure.object!r} is not UTF-8") from None


def source_name(request: OpenRequest) -> str:
    """Answer how a repr and a message call what this request opens."""
    if request.flags & KVM_NO_FILES:
        return "no files"
    return request.corefile or "the running kernel"


def _split(swapfile: Swap) -> list[Name]:
    if swapfile is None:
        return []
    if isinstance(swapfile, str):
        return [name for name in swapfile.split(":") if name]
    if isinstance(swapfile, os.PathLike):
        return [swapfile]
    return list(swapfile)


def _path(name: Name, local: bool) -> str:
    path = os.fsdecode(os.fspath(name))
    # A name that does not exist here is passed as it is: the daemon looks bare names up among its dumps.
    if local and not os.path.isabs(path) and os.path.exists(path):
        return os.path.abspath(path)
    return path
