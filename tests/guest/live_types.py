"""Checks of types. No call gives them out: the worker's own code is run here, as root, on the daemon's files."""

from __future__ import annotations

import os

from drgn import sizeof

from kvmd.images.base import File, Files, Kind
from kvmd.images.linux.live_image import LiveImage
from kvmd.live import open_files

# A type that only a module has, one that goes on into the kernel's, and where the kernel says how large they are.
MODULE_TYPE, KERNEL_TYPE = "struct zram", "struct task_struct"


def module_types() -> str:
    """The types of modules are the same from /sys/kernel/btf and from the list in memory."""
    opened = dict(open_files(Kind.LIVE, False))
    files = {role: File(file.fd, file.path) for role, file in opened.items()}
    core = files.pop("core")
    in_memory = {role: file for role, file in files.items() if not role.startswith("btf/") or role == "btf/vmlinux"}
    found = []
    for extra in (files, in_memory):
        prog = LiveImage(Files(core, kind=Kind.LIVE, extra=extra)).kernel.prog
        zram = prog.type(MODULE_TYPE)
        assert zram.member("disk").type.type.has_member("part0"), zram
        found.append((sizeof(zram), [(m.name, m.bit_offset) for m in zram.members], sizeof(prog.type(KERNEL_TYPE))))
    assert found[0] == found[1], found
    assert {f"btf/{name}" for name in os.listdir("/sys/kernel/btf")} <= set(files)
    return f"{MODULE_TYPE}: {found[0][0]} bytes, {len(found[0][1])} members; {len(files)} files"


TYPES = {f.__name__: f for f in (module_types,)}
