"""The worker's capabilities, for the moment in which an environment is opened.

A client whom the policy gives the verb ``environment`` has a worker with CAP_DAC_READ_SEARCH and CAP_SYS_PTRACE among
its permitted capabilities, but not in effect: so all else shows what it would show without.
Source: capabilities(7), proc_pid_environ(5), ptrace(2) (PTRACE_MODE_READ).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from kvmd import syscalls

READ_ANY = 1 << 2 | 1 << 19
"""CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE: what opening another user's environment takes."""
_CAPSET = {"x86_64": 126, "aarch64": 91}


def capset(effective: int, permitted: int) -> None:
    """Set the thread's capabilities, the inheritable ones to none; capset(2), version 3.

    :raises OSError: EPERM.
    """
    header = struct.pack("=Ii", 0x20080522, 0)
    low, high = (0xFFFFFFFF & effective, 0xFFFFFFFF & permitted, 0), (effective >> 32, permitted >> 32, 0)
    syscalls.syscall(_CAPSET[os.uname().machine], header, struct.pack("=6I", *low, *high), name="capset")


@contextmanager
def raised() -> Iterator[None]:
    """A context in which what is permitted is in effect.

    :raises OSError: EPERM in a worker that may not even ask what it has.
    """
    effective, permitted, _ = syscalls.capabilities()
    capset(effective | permitted & READ_ANY, permitted)
    try:
        yield
    finally:
        capset(effective, permitted)
