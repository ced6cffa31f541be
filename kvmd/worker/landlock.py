"""Landlock: no file, no TCP port, no abstract socket and no other process, where the kernel can see to it.

Sources: landlock(7), Documentation/userspace-api/landlock.rst. A ruleset that handles a right and has no rule
refuses it everywhere. Descriptors that are already open stay usable.
"""

from __future__ import annotations

import errno
import os
import struct

from kvmd import syscalls

_CREATE_VERSION = 1
# Access rights to files by the ABI that brought them: 13 (Linux 5.13), REFER (5.19), TRUNCATE (6.2), IOCTL_DEV (6.10).
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_NET = {4: 0b11}  # bind and connect of TCP (6.7)
_SCOPE = {6: 0b11}  # abstract Unix sockets and signals (6.12)
_SIZES = {1: 8, 4: 16, 6: 24}  # of struct landlock_ruleset_attr


def abi() -> int:
    """The kernel's Landlock ABI; 0 where there is none, or it isn't enabled."""
    try:
        return syscalls.syscall(syscalls.SYS_LANDLOCK_CREATE_RULESET, 0, 0, _CREATE_VERSION, name="landlock")
    except OSError as failure:
        if failure.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return 0
        raise


def attributes(version: int) -> bytes:
    """The ruleset that handles all that an ABI knows; a later ABI's news are left alone."""

    def known(rights: dict[int, int]) -> int:
        return sum(bits for since, bits in rights.items() if since <= version)

    size = max(size for since, size in _SIZES.items() if since <= version)
    return struct.pack("=QQQ", known(_FILES), known(_NET), known(_SCOPE))[:size]


def restrict() -> int:
    """Refuse this thread, and threads and processes it starts, everything; needs no_new_privs.

    :return: the ABI in force, 0 for none.
    :raises OSError: the kernel has Landlock and refuses.
    """
    version = abi()
    if not version:
        return 0
    ruleset = attributes(version)
    fd = syscalls.syscall(syscalls.SYS_LANDLOCK_CREATE_RULESET, ruleset, len(ruleset), 0, name="landlock")
    try:
        syscalls.syscall(syscalls.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, name="landlock")
    finally:
        os.close(fd)
    return version
