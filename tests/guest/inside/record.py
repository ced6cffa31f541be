"""In the guest, as root: writes down what the kernel says of itself, then has this machine dumped as it is.

record.py OUT [FORMAT]
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

_FRAME = re.compile(r"\[<0>\] (\S+)\+(0x[0-9a-f]+)/")
_SWITCHES = re.compile(r"ctxt_switches:\s*(\d+)")
_RECORDS = 1 << 16


def process(path: Path) -> dict[str, Any]:
    """What /proc says of a process; bytes as hexadecimal digits.

    How often it was switched from comes first: if that is the same in the dump, so is its stack.
    """
    switches = sum(map(int, _SWITCHES.findall((path / "status").read_text(errors="surrogateescape"))))
    head, _, rest = (path / "stat").read_text(errors="surrogateescape").rpartition(")")
    return {
        "switches": switches,
        "pid": int(path.name),
        "ppid": int(rest.split()[1]),
        "comm": head.partition("(")[2],
        "argv": (path / "cmdline").read_bytes().hex(),
        "environ": environment(path).hex(),
        "stack": [[name, int(at, 16)] for name, at in _FRAME.findall((path / "stack").read_text())],
    }


def environment(path: Path) -> bytes:
    """Of a kernel thread nothing, which newer kernels (6.12) answer with an error."""
    try:
        return (path / "environ").read_bytes()
    except ProcessLookupError:
        return b""


def processes() -> dict[int, dict[str, Any]]:
    """Every process that did not end meanwhile."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(path.name)] = process(path)
    return found


def log() -> list[list[Any]]:
    """The kernel's log: number and text of each record."""
    records: list[list[Any]] = []
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while len(records) < _RECORDS:
            head, _, text = os.read(fd, 8192).partition(b";")
            records.append([int(head.split(b",")[1]), text.split(b"\n")[0].decode("utf-8", "replace")])
    os.close(fd)
    return records


def main() -> None:
    """Record, and dump."""
    out, form = Path(sys.argv[1]), (sys.argv[2:] or ["elf"])[0]
    # A file of more than a page: what /proc is asked for while it is read changes none of it.
    shutil.copyfile("/proc/kallsyms", out / "kallsyms")
    first, again = processes(), processes()
    before = {pid: p | {"switches": again[pid]["switches"]} for pid, p in first.items() if pid in again}
    steady = [p for pid, p in again.items() if before.get(pid) == p and pid != os.getpid()]
    text = Path("/proc/version").read_text()
    (out / "truth.json").write_text(
        json.dumps({"release": os.uname().release, "banner": text, "processes": steady, "log": log()})
    )
    subprocess.run(["guest-host", "dump", "vmcore", form], check=True)


if __name__ == "__main__":
    main()
