"""The running kernel's files: with the opener, all that opens privileged nodes. No name here is a client's.

Sources: proc(5), mem(4), kernel_lockdown(7), capabilities(7); Linux Documentation/admin-guide/sysctl/kernel.rst.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator

from kvmd.errors import KvmError, Reason, error
from kvmd.images.base import Kind
from kvmd.opener import OpenedFile

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
_WRITE = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NOFOLLOW
# Of swap areas: what the kernel swaps goes past the page cache.
_DIRECT = _READ | os.O_DIRECT | os.O_NONBLOCK
_OPTIONAL = {
    "kallsyms": "/proc/kallsyms",
    "vmcoreinfo": "/sys/kernel/vmcoreinfo",
    "iomem": "/proc/iomem",
    "swaps": "/proc/swaps",
}
_BTF = "/sys/kernel/btf"
_MAX_BTF = 180  # of the 256 files that a worker may hold (kvmd.worker.sandbox.SandboxLimits)
_MAX_SWAP = 32  # what a kernel has of them (1 << MAX_SWAPFILES_SHIFT)
_LOCKDOWN = "/sys/kernel/security/lockdown"


def open_files(kind: Kind, writable: bool, *, root: str = "") -> Iterator[tuple[str, OpenedFile]]:
    """Open what an image of the running kernel is made of, each with its role; the caller closes what it is given.

    :param root: a directory that stands for ``/``.
    :raises KvmError: LOCKDOWN, NO_LIVE_SOURCE, SOURCE_ACCESS, SOURCE_IO; none of a file that the image can do without.
    """
    if kind is Kind.PROCFS:
        yield "proc", _must("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, root)
        return
    if kind is Kind.DUMP:
        raise error(Reason.BAD_ARGUMENT, "a dump is no image of the running kernel")
    yield "core", _must("/dev/mem" if kind is Kind.MEM else "/proc/kcore", _READ, root)
    if writable:
        yield "mem", _must("/dev/mem", _WRITE, root)
    if kind is Kind.MEM:
        yield from _maybe("kcore", "/proc/kcore", root)
    for role, path in _OPTIONAL.items():
        yield from _maybe(role, path, root)
    for path in _swap_names(root):
        yield from _maybe("swap", path, root, _DIRECT)
    for name in _btf_names(root):
        yield from _maybe(f"btf/{name}", f"{_BTF}/{name}", root)


def _swap_names(root: str) -> Iterator[str]:
    """The swap areas in use, which only root turns on; the worker compares what stands there with the kernel's."""
    try:
        with open(root + "/proc/swaps", "rb") as file:
            lines = file.read(1 << 20).splitlines()[1:]
    except OSError:
        return
    for line in lines[:_MAX_SWAP]:
        name = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8) & 0xFF]), line.split(b" ")[0])
        if name.startswith(b"/"):
            yield os.fsdecode(name)


def _btf_names(root: str) -> list[str]:
    """The kernel's own, and so many of its modules' as a worker can be handed."""
    try:
        names = sorted(os.listdir(root + _BTF))
    except OSError:
        return []
    return sorted(names, key=lambda name: name != "vmlinux")[:_MAX_BTF]


def _opened(path: str, flags: int, root: str) -> OpenedFile:
    fd = os.open(root + path, flags)
    try:
        return OpenedFile(fd, path, os.fstat(fd))
    except BaseException:
        os.close(fd)
        raise


def _maybe(role: str, path: str, root: str, flags: int = _READ) -> Iterator[tuple[str, OpenedFile]]:
    try:
        file = _opened(path, flags, root)
    except OSError:
        return
    if flags == _DIRECT and not (stat.S_ISREG(file.stat.st_mode) or stat.S_ISBLK(file.stat.st_mode)):
        file.close()
        return
    yield role, file


def _must(path: str, flags: int, root: str) -> OpenedFile:
    try:
        file = _opened(path, flags, root)
    except OSError as e:
        raise _failure(path, e, root) from e
    # Containers and units put an empty file or /dev/null in a hidden file's place.
    if path == "/proc/kcore" and not (stat.S_ISREG(file.stat.st_mode) and file.stat.st_size):
        file.close()
        raise error(Reason.NO_LIVE_SOURCE, f"{path} is hidden from the daemon: {_HIDDEN[path]}", path=path)
    return file


_HIDDEN = {
    "/proc/kcore": "by a container, or by ProtectKernelTunables= or ProcSubset=pid of its unit",
    "/dev/mem": "by a container, or by PrivateDevices= or DevicePolicy= of its unit",
    "/proc": "no procfs is mounted",
}
_MISSING = {
    "/proc/kcore": "the kernel lacks CONFIG_PROC_KCORE, or it is hidden from the daemon " + _HIDDEN["/proc/kcore"],
    "/dev/mem": "the kernel lacks CONFIG_DEVMEM, or it is hidden from the daemon " + _HIDDEN["/dev/mem"],
    "/proc": _HIDDEN["/proc"],
}


def _failure(path: str, e: OSError, root: str) -> KvmError:
    """Why a file that the image needs can't be opened, and what to do."""
    words = {"path": path, "errno": errno.errorcode.get(e.errno or 0, "EIO")}
    if e.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return error(Reason.NO_LIVE_SOURCE, f"no {path}: {_MISSING[path]}", **words)
    if e.errno not in (errno.EPERM, errno.EACCES):
        return error(Reason.SOURCE_IO, f"{path}: {e.strerror}", **words)
    level = _lockdown(root)
    if e.errno == errno.EPERM and (level == "confidentiality" or (level == "integrity" and path == "/dev/mem")):
        instead = "a crash dump" if level == "confidentiality" else "/proc/kcore, which it leaves readable,"
        message = f"{path}: kernel lockdown ({level}) forbids it; use {instead} or boot with a lower lockdown="
        return error(Reason.LOCKDOWN, message, lockdown=level, **words)
    needs = "CAP_SYS_RAWIO" if e.errno == errno.EPERM else "root's uid, or CAP_DAC_OVERRIDE and CAP_SYS_RAWIO"
    return error(Reason.SOURCE_ACCESS, f"{path}: {e.strerror}: the daemon needs {needs} to open it", **words)


def _lockdown(root: str) -> str:
    """The level in force: ``none``, ``integrity`` or ``confidentiality``; empty where it can't be told."""
    try:
        with open(root + _LOCKDOWN, encoding="ascii", errors="replace") as file:
            chosen = re.search(r"\[(\w+)\]", file.read(256))
    except OSError:
        return ""
    return chosen[1] if chosen else ""
