"""Checks of memory that was swapped out of running processes: to a partition, a file, zram and zswap."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swap_zoo import PAGE, Zoo, expected, swapped

from guest import as_user
from libkvm import KvmError, UnavailableError
from libkvm.client import Client

ZSWAP = Path("/sys/module/zswap/parameters")
FILES = {"/swapfile": 16, "/swapz": 48}  # MiB
POOLS = (
    *(("lzo", "zbud"), ("lz4", "zsmalloc"), ("deflate", "zbud"), ("zstd", "zsmalloc")),
    *(("zstd", "z3fold"), ("lzo-rle", "z3fold"), ("lzo-rle", "zsmalloc")),
)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def swap_file(path: str, priority: int) -> None:
    """Make a swap file and turn it on."""
    run("dd", "if=/dev/zero", f"of={path}", "bs=1M", f"count={FILES[path]}", "status=none")
    Path(path).chmod(0o600)
    run("mkswap", "-L", f"kvmd{path[1:]}", path)
    run("swapon", "-p", str(priority), path)


def zram(number: int, algorithm: str, priority: int) -> None:
    """Make a zram device and swap to it."""
    if not Path(f"/dev/zram{number}").exists():
        Path("/sys/class/zram-control/hot_add").read_text()
    block = Path(f"/sys/block/zram{number}")
    block.joinpath("comp_algorithm").write_text(algorithm)
    block.joinpath("disksize").write_text(f"{24 + number}M")
    run("mkswap", f"/dev/zram{number}")
    run("swapon", "-p", str(priority), f"/dev/zram{number}")


def zram_algorithms() -> list[str]:
    if not Path("/sys/block/zram0").exists():  # another check has taken the module away
        subprocess.run(["insmod", "/modules/zram.ko"], check=True)
    known = Path("/sys/block/zram0/comp_algorithm").read_text().replace("[", " ").replace("]", " ").split()
    return [name for name in ("lzo-rle", "lzo", "lz4", "zstd", "deflate", "lz4hc") if name in known]


def zswap(compressor: str, pool: str) -> str | None:
    """Turn zswap on with a compressor and a pool; answers what it is then, None where the kernel has no such thing."""
    try:
        (ZSWAP / "compressor").write_text(compressor)
        if (ZSWAP / "zpool").exists():
            (ZSWAP / "zpool").write_text(pool)
        (ZSWAP / "enabled").write_text("Y")
        got = (ZSWAP / "compressor").read_text().strip()
        kept = (ZSWAP / "zpool").read_text().strip() if (ZSWAP / "zpool").exists() else "zsmalloc"
    except OSError:
        return None
    return f"zswap-{got}-{kept}" if (got, kept) == (compressor, pool) else None


@contextmanager
def everywhere(**how: Any) -> Iterator[Zoo]:
    """Processes in every kind of swap; each area is the first to be taken when it is turned on."""
    with suppress(OSError):
        Path("/sys/kernel/mm/lru_gen/enabled").write_text("n")
    zoo = Zoo()
    run("swapoff", "-a")
    run("swapon", "-p", "1", "/dev/vdb")
    try:
        zoo.add("partition", huge=True, touch=True, **how)
        swap_file("/swapfile", 20)
        zoo.add("file", **how)
        for number, algorithm in enumerate(zram_algorithms()):
            zram(number, algorithm, 30 + number)
            zoo.add(f"zram-{algorithm}", huge=number == 0, **how)
        swap_file("/swapz", 100)
        for compressor, pool in POOLS:
            name = zswap(compressor, pool)
            if name is not None:
                zoo.add(name, **how)
        yield zoo
    finally:
        with suppress(OSError):
            (ZSWAP / "enabled").write_text("N")
        zoo.stop()
        run("swapoff", "-a")
        for path in FILES:
            Path(path).unlink(missing_ok=True)
        run("swapon", "-p", "10", "/dev/vdb")


def out(held: dict[str, Any]) -> int:
    """How many pages of a process are swapped out, by the kernel's word."""
    return sum(where is not None for r in held["regions"] for where in swapped(held["pid"], r["address"], r["pages"]))


def read_everything(client: Client, zoo: Zoo) -> list[str]:
    """Compare every byte with what was written; answers what differs."""
    wrong = []
    with client.open() as kernel:
        for held in zoo.held:
            name, pid = held["name"], held["pid"]
            for region in held["regions"]:
                wanted = expected(name, region["name"], region["pages"])
                got = b"".join(
                    kernel.read(region["address"] + at, min(1 << 20, len(wanted) - at), pid=pid)
                    for at in range(0, len(wanted), 1 << 20)
                )
                if got != wanted:
                    wrong.append(f"{name}/{region['name']}")
            argv = b"".join(os.fsencode(each) + b"\0" for each in kernel.argv(pid))
            environ = b"".join(os.fsencode(each) + b"\0" for each in kernel.environ(pid))
            wrong += [f"{name}/{what}" for what, got in (("argv", argv), ("environ", environ)) if got != held[what]]
    return wrong


def swap_everywhere() -> str:
    """Every byte of heaps, shared memory, arguments and environments, and no page was brought back by the reading."""
    with everywhere() as zoo:
        before = [out(held) for held in zoo.held]
        assert all(count > 90 for count in before), dict(zip([held["name"] for held in zoo.held], before, strict=True))
        wrong = as_user("alice", lambda client: read_everything(client, zoo))
        assert not wrong, wrong
        after = [out(held) for held in zoo.held]
        assert sum(after) >= sum(before) - 64, (before, after)
        listed = as_user("alice", lambda client: [_row(area) for area in client.open().swap_areas()])
        told = run("swapon", "--show=NAME,UUID,LABEL", "--raw", "--noheadings").splitlines()
        assert {f"{path} {uuid} {label}".strip() for path, uuid, label, _ in listed} == {t.strip() for t in told}
        assert all(path == satisfied for path, _, _, satisfied in listed), listed
        names = ", ".join(held["name"] for held in zoo.held)
    return f"{sum(before)} pages out; {names}"


def _row(area: Any) -> tuple[str, str, str, str]:
    return area.path, area.uuid, area.label, area.satisfied_by


def swapoff_between() -> str:
    """An area that is turned off or on while a descriptor is open: the right bytes, or an error that says why."""
    zoo = Zoo()
    run("swapoff", "-a")
    run("swapon", "-p", "1", "/dev/vdb")
    try:
        held = zoo.add("first")
        assert out(held) > 90
        said = as_user("root", lambda client: _steps(client, zoo, held))
    finally:
        zoo.stop()
        run("swapoff", "-a")
        Path("/swapfile").unlink(missing_ok=True)
        run("swapon", "-p", "10", "/dev/vdb")
    assert (said[0], said[1], said[3]) == ("right", "right", "right"), said
    assert said[2].startswith("NOT_PRESENT: swap area 0 (/swapfile, UUID "), said
    assert said[2].endswith(") not given"), said
    return said[2]


def _steps(client: Client, zoo: Zoo, held: dict[str, Any]) -> list[str]:
    """Read before and after a swapoff, after another area has taken its number, and by a new descriptor."""
    said = []
    with client.open() as kernel:
        said.append(_heap(kernel, held))
        run("swapoff", "/dev/vdb")
        said.append(_heap(kernel, held))
        swap_file("/swapfile", 20)
        zoo.push(held)
        assert out(held) > 90
        said.append(_heap(kernel, held))
    with _opened(client) as kernel:
        said.append(_heap(kernel, held))
    return said


def _opened(client: Client) -> Any:
    """Open again: other areas need another worker, which in an emulator that swaps may take longer than it should."""
    for _ in range(4):
        with suppress(UnavailableError):
            return client.open()
        time.sleep(10)
    return client.open()


def _heap(kernel: Any, held: dict[str, Any]) -> str:
    heap = held["regions"][0]
    try:
        got = kernel.read(heap["address"], heap["pages"] * PAGE, pid=held["pid"])
    except KvmError as failure:
        return f"{failure.reason.value}: {failure.message}"
    return "right" if got == expected(held["name"], heap["name"], heap["pages"]) else "wrong"


SWAP = {f.__name__: f for f in (swap_everywhere, swapoff_between)}
