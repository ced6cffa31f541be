"""System calls that the standard library has no wrapper for, through libc and ctypes.

Mechanism only: what to call, and when, is decided by the opener, the front and the worker's sandbox.
The numbers are those of x86-64 and aarch64, which agree from Linux 5.1 on.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

SYS_OPENAT2 = 437
SYS_LANDLOCK_CREATE_RULESET = 444
SYS_LANDLOCK_RESTRICT_SELF = 446

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT = 16 << 20


def _checked(result: int, name: str) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _words(arguments: tuple[Any, ...]) -> list[Any]:
    """Widen integers to registers: a variadic C function would read rubbish above a C int."""
    return [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]


def syscall(number: int, *arguments: int | bytes | ctypes.Array[Any] | None, name: str = "") -> int:
    """Call syscall(2).

    :raises OSError: with the call's errno; EINTR is not retried.
    """
    return _checked(_libc.syscall(ctypes.c_long(number), *_words(arguments)), name or f"system call {number}")


def prctl(option: int, *arguments: int, name: str = "prctl") -> int:
    """Call prctl(2); the arguments not given are zero, as most options demand.

    :raises OSError: with the call's errno.
    """
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return _checked(_libc.prctl(ctypes.c_int(option), *_words(padded)), name)


def unshare(flags: int) -> None:
    """Call unshare(2) (``os.unshare`` is of Python 3.12)."""
    _checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def capset_empty() -> None:
    """Empty the thread's effective, permitted and inheritable capabilities; capset(2), version 3."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _checked(_libc.capset(header, bytes(24)), "capset")


def capabilities() -> tuple[int, int, int]:
    """The thread's effective, permitted and inheritable capabilities as bit masks; capget(2), version 3."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    data = ctypes.create_string_buffer(24)
    _checked(_libc.capget(header, data), "capget")
    low = struct.unpack("=6I", data.raw[:24])
    return low[0] | low[3] << 32, low[1] | low[4] << 32, low[2] | low[5] << 32


def openat2(directory: int, name: bytes, flags: int, resolve: int) -> int:
    """Call openat2(2) (Linux 5.6).

    :return: a new file descriptor.
    :raises OSError: ENOSYS on an older kernel, EPERM under an old container's seccomp filter.
    """
    how = struct.pack("=QQQ", flags, 0, resolve)
    while True:
        try:
            return syscall(SYS_OPENAT2, directory, name, how, len(how), name="openat2")
        except InterruptedError:
            continue


def getsockopt(fd: int, level: int, option: int, size: int) -> bytes:
    """Call getsockopt(2) with a buffer of any size; the socket module stops at 1024 bytes.

    :raises OSError: with the call's errno.
    """
    buffer = ctypes.create_string_buffer(size)
    length = ctypes.c_uint32(size)
    _checked(_libc.getsockopt(fd, level, option, buffer, ctypes.byref(length)), "getsockopt")
    return buffer.raw[: length.value]


def keep_freed_memory() -> None:
    """Have malloc() keep up to 16 MiB that was freed: to get fresh memory for each MiB takes longer than to copy it.

    Other C libraries than glibc have no mallopt(); they do as they do.
    """
    if hasattr(_libc, "mallopt"):
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            _libc.mallopt(option, _KEPT)
