"""Processes with known patterns in every kind of swap, for the checks in a guest; and what they wrote, to compare.

    swap_zoo.py hold SPEC     one process (internal)

As a module: :func:`expected` gives what a process wrote, :class:`Zoo` starts them, as root, in a guest.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PAGE = 4096
PAGEOUT, HUGE = 21, 14  # MADV_PAGEOUT, MADV_HUGEPAGE
PROCESS_MADVISE = 440
PROT_ALL, PROT_NONE = 3, 0


def pattern(seed: str, index: int) -> bytes:
    """A page: in turn text, noise, one word, a few bytes, zeros, half noise and half one character."""
    tag = f"{seed}/{index}".encode()
    noise = b"".join(hashlib.sha256(tag + bytes([i])).digest() for i in range(128))
    match index % 6:
        case 0:
            line = b"%s kvmd reads what was swapped out; " % tag
            return (line * (PAGE // len(line) + 1))[:PAGE]
        case 1:
            return noise
        case 2:
            return hashlib.sha256(tag).digest()[:8] * (PAGE // 8)
        case 3:
            return (tag.ljust(1000, b"\0") + noise[:40]).ljust(PAGE, b"\0")
        case 4:
            return bytes(PAGE)
        case _:
            return noise[: PAGE // 2] + tag.ljust(PAGE // 2, b".")


def expected(seed: str, region: str, pages: int) -> bytes:
    """What a process wrote into a region of its memory."""
    return b"".join(pattern(f"{seed}:{region}", i) for i in range(pages))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


class _Holder:
    """A process: regions filled with their patterns, and a child that shares them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._seed: str = spec["seed"]
        self._keep: list[mmap.mmap] = []
        self.regions: list[dict[str, Any]] = []
        anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._region("heap", mmap.mmap(-1, spec["heap"] * PAGE, anonymous))
        self._region("shared", mmap.mmap(-1, 24 * PAGE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))
        with Path(f"/dev/shm/{self._seed}").open("w+b") as file:
            file.truncate(24 * PAGE)
            self._region("tmpfs", mmap.mmap(file.fileno(), 24 * PAGE))
        self.hidden = self._region("none", mmap.mmap(-1, 4 * PAGE, anonymous))
        self._twice = self._region("twice", mmap.mmap(-1, 8 * PAGE, anonymous))
        if spec["huge"]:
            self._huge(mmap.mmap(-1, 6 << 20, anonymous))
        self.protect(PROT_NONE)

    def _region(self, name: str, area: mmap.mmap) -> mmap.mmap:
        pages = len(area) // PAGE
        area[:] = expected(self._seed, name, pages)
        self.regions.append({"name": name, "address": _address(area), "pages": pages})
        self._keep.append(area)
        return area

    def _huge(self, area: mmap.mmap) -> None:
        start, size = -(-_address(area) // (2 << 20)) * (2 << 20), 2 << 20
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), HUGE)
        ctypes.memmove(start, expected(self._seed, "huge", size // PAGE), size)
        self.regions.append({"name": "huge", "address": start, "pages": size // PAGE})
        self._keep.append(area)

    def protect(self, how: int) -> None:
        _libc().mprotect(ctypes.c_void_p(_address(self.hidden)), ctypes.c_size_t(4 * PAGE), how)

    def split(self) -> int:
        """Fork a child that takes half of ``twice`` back when it is told to: into the swap cache, for two have it."""
        child = os.fork()
        if not child:
            signal.signal(signal.SIGUSR1, lambda *_: None)
            signal.pause()
            bytes(self._twice[: 4 * PAGE])
            while True:
                signal.pause()
        return child

    def touch(self) -> None:
        """Take half of what nobody may touch back: present, though not to the CPU."""
        self.protect(PROT_ALL)
        bytes(self.hidden[: 2 * PAGE])
        self.protect(PROT_NONE)


def hold(spec: dict[str, Any]) -> None:
    """Be a process."""
    signal.signal(signal.SIGUSR2, lambda *_: None)
    holder = _Holder(spec)
    told = {"pid": os.getpid(), "child": holder.split(), "regions": holder.regions}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()
    if spec["touch"]:
        signal.pause()
        holder.touch()
    while True:
        signal.pause()


def page_out(pid: int, start: int, length: int) -> None:
    """Push a process's pages out, as far as the kernel will."""
    fd = os.pidfd_open(pid)
    try:
        vector = (ctypes.c_size_t * 2)(start, length)
        _libc().syscall(PROCESS_MADVISE, fd, vector, ctypes.c_size_t(1), PAGEOUT, 0)
    finally:
        os.close(fd)


def swapped(pid: int, start: int, pages: int) -> list[list[int] | None]:
    """The kernel's own word, by /proc/PID/pagemap: area and slot of each page, None for one that is in memory."""
    with open(f"/proc/{pid}/pagemap", "rb") as file:
        file.seek(start // PAGE * 8)
        words = struct.unpack(f"<{pages}Q", file.read(pages * 8))
    return [[word & 31, word >> 5 & (1 << 50) - 1] if word >> 62 & 1 else None for word in words]


def stack(pid: int) -> tuple[int, int]:
    """Where a process's stack lies, with its arguments and environment."""
    line = next(line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith("[stack]"))
    start, end = line.split()[0].split("-")
    return int(start, 16), int(end, 16)


class Zoo:
    """The processes, each in a cgroup of its own so that it can be pushed out alone."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self.held: list[dict[str, Any]] = []
        Path("/sys/fs/cgroup/cgroup.subtree_control").write_text("+memory")

    def add(self, name: str, heap: int = 96, *, huge: bool = False, touch: bool = False) -> dict[str, Any]:
        """Start a process and push it out, to wherever the kernel swaps now."""
        group = Path(f"/sys/fs/cgroup/zoo-{name}")
        group.mkdir(exist_ok=True)
        spec = json.dumps({"seed": name, "heap": heap, "huge": huge, "touch": touch})
        process = subprocess.Popen(
            [*INTO, str(group / "cgroup.procs"), sys.executable, __file__, "hold", spec, "x" * 3000, "grüße"],
            env={"SWAPPED_INTO": name, "PADDING": "p" * 5000, "EMPTY": ""},
            stdout=subprocess.PIPE,
        )
        self._processes.append(process)
        told: dict[str, Any] = json.loads(process.stdout.readline())
        # Asked before: afterwards it would bring the pages back.
        told |= {what: Path(f"/proc/{told['pid']}/{file}").read_bytes() for what, file in STRINGS.items()}
        self.push(told | {"name": name})
        os.kill(told["child"], signal.SIGUSR1)
        if touch:
            os.kill(told["pid"], signal.SIGUSR2)
        time.sleep(1)
        self.held.append(told | {"name": name})
        return self.held[-1]

    @staticmethod
    def push(told: dict[str, Any]) -> None:
        """Push a process out."""
        reclaim = Path(f"/sys/fs/cgroup/zoo-{told['name']}/memory.reclaim")
        for _ in range(4):
            try:
                reclaim.write_text("64M")
            except OSError:  # no more could be pushed out
                break
        for pid in (told["pid"], told["child"]):
            start, end = stack(pid)
            for first, length in [(r["address"], r["pages"] * PAGE) for r in told["regions"]] + [(start, end - start)]:
                page_out(pid, first, length)

    def stop(self) -> None:
        """End the processes."""
        for process, told in zip(self._processes, self.held, strict=False):
            os.kill(told["child"], signal.SIGKILL)
            process.kill()
            process.wait()


INTO = ("/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"')  # a cgroup, before anything else
STRINGS = {"argv": "cmdline", "environ": "environ"}

if __name__ == "__main__" and sys.argv[1] == "hold":
    hold(json.loads(sys.argv[2]))
