"""A /proc made up of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from kvmd.images.base import File, Files, Kind
from kvmd.images.procfs.image import ProcfsImage
from kvmd.images.registry import open_image
from kvmd.v1 import process_pb2

_IDS = ("state", "ppid", "pgid", "sid", "tty", "tpgid", "flags")
_NAMES = (*_IDS, *"abcdefgh", "priority", "nice", "threads", "timer", "start", "vsize", "rss")


def stat_line(comm: bytes = b"x", **other: int | str) -> bytes:
    """A line of /proc/PID/stat."""
    given = {"state": "S", "ppid": 1, "pgid": 5, "sid": 4, "vsize": 8192, "rss": 2, "threads": 1, **other}
    return b"5 (" + comm + b") " + " ".join(str(given.get(name, 0)) for name in _NAMES).encode() + b" 7 8 9\n"


def status_text(tgid: int, uid: str = "1 2 3 4", gid: str = "5 6 7 8") -> str:
    """The part of /proc/PID/status that is used."""
    words = "\t".join
    return f"Name:\tx\nTgid:\t{tgid}\nUid:\t{words(uid.split())}\nGid:\t{words(gid.split())}\nGroups:\t \n"


class Proc:
    """A /proc of files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fd = os.open(root, os.O_PATH | os.O_DIRECTORY)

    def write(self, name: str, data: bytes | str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    def task(self, pid: int, tgid: int | None = None, *, comm: bytes = b"x", **stat: int | str) -> str:
        tgid = pid if tgid is None else tgid
        for name in {f"{tgid}/task/{pid}", str(pid)}:
            self.write(f"{name}/stat", stat_line(comm, **stat))
            self.write(f"{name}/status", status_text(tgid))
            self.write(f"{name}/comm", comm + b"\n")
            self.write(f"{name}/cmdline", b"a\0\0b c\0")
            self.write(f"{name}/environ", b"A=1\0B\0")
        return str(pid)

    @property
    def image(self) -> ProcfsImage:
        image = open_image(Files(None, kind=Kind.PROCFS, extra={"proc": File(self.fd, "/proc")}))
        assert isinstance(image, ProcfsImage)
        return image

    def list(self, **request: Any) -> list[process_pb2.Process]:
        return list(self.image.processes(process_pb2.GetProcsRequest(**request)))
