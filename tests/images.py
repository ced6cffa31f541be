"""Fixtures for tests that need a real dump: unpacks it once into a cache directory.

``fixture("qemu/vmcore.kdump")`` gives the path of the unpacked file, alone in its directory, and the truth that was
recorded in its guest.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parent / "data"


class Fixture(NamedTuple):
    """An unpacked dump, and the ground truth of the moment it was taken."""

    path: Path
    truth: dict[str, Any]


def cache_directory() -> Path:
    """Where files are unpacked: below $XDG_CACHE_HOME if set, else the system's directory of temporary files."""
    root = os.environ.get("XDG_CACHE_HOME")
    place = Path(root or tempfile.gettempdir()) / f"kvmd-test-images-{os.getuid()}"
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    return place


def unpack(folder: str, form: str) -> Path:
    """Unpack a file of tests/data, unless that has been done since it last changed."""
    packed = DATA / folder / f"{form}.xz"
    stat = packed.stat()
    target = cache_directory() / f"{folder}-{stat.st_size}-{stat.st_mtime_ns}" / form
    if not target.exists():
        target.parent.mkdir(mode=0o755, exist_ok=True)
        # Unpacked beside its directory, which others may be listing; of two that unpack at once, both are right.
        with tempfile.NamedTemporaryFile(dir=cache_directory(), delete=False) as out, lzma.open(packed) as source:
            shutil.copyfileobj(source, out, 1 << 20)
        Path(out.name).chmod(0o644)
        Path(out.name).rename(target)
    return target


@cache
def fixture(name: str) -> Fixture:
    """Return a fixture by its name below tests/data, without .xz."""
    folder, _, form = name.partition("/")
    truth = json.loads((DATA / folder / "truth.json").read_text("utf-8"))
    plain = DATA / name
    return Fixture(plain if plain.exists() else unpack(folder, form), truth)
