"""The texts of /proc as numbers. Pure; a text that is not what proc(5) says raises CORRUPT_DATA.

Sources: proc_pid_stat(5), proc_pid_status(5), proc_pid_fdinfo(5), proc_loadavg(5), proc_stat(5), proc_swaps(5),
proc_meminfo(5); Linux fs/proc/array.c, fs/seq_file.c (mangle_path), kernel/workqueue.c (wq_worker_comm).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from kvmd.errors import Reason, error

PF_KTHREAD = 0x00200000
COMM = 15
"""The most bytes of a task's name: TASK_COMM_LEN without the closing NUL."""
_CPU_COLUMNS = 10
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_IDS = re.compile(rb"^(Tgid|Uid|Gid):\t([^\n]*)$", re.MULTILINE)
_FDINFO = re.compile(rb"^(pos|flags):\t(-?[0-9]+)$", re.MULTILINE)
_MEM_TOTAL = re.compile(rb"^MemTotal:[ \t]*([0-9]+) kB$", re.MULTILINE)
_WORKER = re.compile(rb"kworker/u?[0-9]+:[0-9]+[A-Z]*")


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, OverflowError):  # what Python makes of a text that has another shape
        raise error(Reason.CORRUPT_DATA, f"{what} is not what proc(5) says", path=what) from None


class Stat(NamedTuple):
    """What is used of /proc/PID/stat.

    :ivar tty: the controlling terminal as makedev(3) packs it; None without one.
    :ivar start: clock ticks after boot.
    :ivar vsize: bytes; 0 for a task without memory of its own.
    :ivar rss: pages.
    """

    state: str
    ppid: int
    pgid: int
    sid: int
    tty: int | None
    flags: int
    nice: int
    threads: int
    start: int
    vsize: int
    rss: int

    @property
    def kernel_thread(self) -> bool:
        """Whether it is a thread of the kernel's own."""
        return bool(self.flags & PF_KTHREAD)

    @property
    def memory(self) -> bool:
        """Whether it has memory of its own: a kernel thread, even one that borrows some, and a zombie have none."""
        return self.vsize > 0 and not self.kernel_thread


def stat(line: bytes) -> Stat:
    """Parse /proc/PID/stat. The name, its second field, may hold anything; the last ``)`` ends it."""
    with _reading("/proc/PID/stat"):
        words = line[line.rindex(b")") + 1 :].split()
        state = words[0].decode("ascii")
        if len(state) != 1:
            raise ValueError(state)
        ppid, pgid, sid, tty, _tpgid, flags = map(int, words[1:7])
        nice, threads, _, start, vsize, rss = map(int, words[16:22])
    # A task that is being reaped has no group any more, and the kernel shows -1; a dump shows none.
    return Stat(
        state, ppid, max(pgid, 0), max(sid, 0), _device(tty), flags, nice, max(threads, 0), start, vsize, max(rss, 0)
    )


def _device(number: int) -> int | None:
    """Undo the kernel's new_encode_dev(): the minor number's low byte, the major number, the minor's rest."""
    number &= 0xFFFFFFFF  # it is shown as an int
    return os.makedev(number >> 8 & 0xFFF, number & 0xFF | number >> 12 & 0xFFF00) if number else None


class Ids(NamedTuple):
    """What is used of /proc/PID/status: the thread group, and real and effective ids."""

    tgid: int
    uid: int
    euid: int
    gid: int
    egid: int


def ids(text: bytes) -> Ids:
    """Parse /proc/PID/status. A name can't forge a line of it: the kernel escapes newlines there."""
    with _reading("/proc/PID/status"):
        found = {key: [int(word) for word in words.split()] for key, words in _IDS.findall(text)}
        (tgid,), (uid, euid, *_), (gid, egid, *_) = found[b"Tgid"], found[b"Uid"], found[b"Gid"]
    return Ids(tgid, uid, euid, gid, egid)


def name(text: bytes, *, kernel_thread: bool) -> bytes:
    """The name in task_struct for the one in /proc/PID/comm, which says of kernel workers what they do, too."""
    comm = text.removesuffix(b"\n")
    worker = _WORKER.match(comm) if kernel_thread else None
    return (worker[0] if worker else comm)[:COMM]


def load_average(text: bytes) -> list[float]:
    """Parse /proc/loadavg: over 1, 5 and 15 minutes."""
    with _reading("/proc/loadavg"):
        one, five, fifteen = (float(word) for word in text.split()[:3])
    return [one, five, fifteen]


def cpu_times(text: bytes) -> list[tuple[int, list[int]]]:
    """Parse the first lines of /proc/stat: CPU (-1 for the sum) and up to ten columns of clock ticks."""
    found: list[tuple[int, list[int]]] = []
    with _reading("/proc/stat"):
        for line in text.split(b"\n"):
            if not line.startswith(b"cpu"):
                break
            cpu, *ticks = line[3:].split() if line[3:4].isdigit() else [b"-1", *line.split()[1:]]
            found.append((int(cpu), [int(word) for word in ticks[:_CPU_COLUMNS]]))
        if not found or any(value < 0 for _, ticks in found for value in ticks):
            raise ValueError("no line of a CPU's")
    return found


def possible_cpus(text: bytes) -> list[int]:
    """Parse the head of /proc/softirqs, which names all CPUs that there can be."""
    with _reading("/proc/softirqs"):
        return sorted(int(word.removeprefix(b"CPU")) for word in text.partition(b"\n")[0].split())


class Swap(NamedTuple):
    """A line of /proc/swaps; sizes in bytes."""

    path: bytes
    kind: str
    size: int
    used: int
    priority: int


def swaps(text: bytes) -> list[Swap]:
    """Parse /proc/swaps: a line of titles, then an area a line; blanks in a path are ``\\040`` and the like."""
    found = []
    with _reading("/proc/swaps"):
        for line in text.split(b"\n")[1:]:
            if not line:
                continue
            path, kind, size, used, priority = line.split()
            place = _ESCAPE.sub(lambda digits: bytes([int(digits[1], 8) & 0xFF]), path)
            found.append(Swap(place, kind.decode("ascii"), int(size) << 10, int(used) << 10, int(priority)))
    return found


def fdinfo(text: bytes) -> tuple[int, int]:
    """Parse /proc/PID/fdinfo/N: position, and open(2)'s flags (in octal)."""
    with _reading("/proc/PID/fdinfo"):
        found = dict(_FDINFO.findall(text))
        return int(found[b"pos"]), int(found[b"flags"], 8)


def memory(text: bytes) -> int:
    """The bytes of memory that the kernel manages, of /proc/meminfo."""
    with _reading("/proc/meminfo"):
        found = _MEM_TOTAL.search(text)
        return int(found[1]) << 10 if found else int("")
