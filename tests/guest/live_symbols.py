"""Checks of symbols and plain memory: against /proc/version, /proc/kallsyms and the clock."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from pathlib import Path

from guest import as_user
from libkvm.client import Client

MODULE, SYMBOL = "zram", "zram_add"


def banner() -> str:
    """linux_banner is /proc/version."""

    def read(client: Client) -> bytes:
        with client.open() as kernel:
            return kernel.read(kernel.symbol("linux_banner").value, 512)

    text = as_user("alice", read).split(b"\0")[0].decode()
    assert text == Path("/proc/version").read_text(), text
    return text[:40]


def info() -> str:
    """The description agrees with uname, /proc/uptime, /proc/loadavg and the clock."""

    def describe(client: Client) -> object:
        with client.open() as kernel:
            return kernel.info

    before = float(Path("/proc/uptime").read_text().split()[0])
    found = as_user("alice", describe)
    after = float(Path("/proc/uptime").read_text().split()[0])
    assert found.live
    assert (found.release, found.version) == (os.uname().release, os.uname().version), found
    assert before - 0.1 <= found.uptime_ns / 1e9 <= after + 0.1, (before, found.uptime_ns, after)
    assert abs(found.time_ns / 1e9 - time.time()) < 60
    assert (found.symbols, found.types) == ("kallsyms", "btf"), found
    assert found.cpus_online == os.cpu_count(), found
    return f"{found.format}, up {found.uptime_ns / 1e9:.1f} s"


def jiffies() -> str:
    """jiffies advances as the clock does."""

    def read(client: Client) -> list[tuple[float, int, float]]:
        with client.open() as kernel:
            address = kernel.symbol("jiffies").value
            rows = []
            for _ in range(2):
                before = time.clock_gettime(time.CLOCK_MONOTONIC)
                value = struct.unpack("<Q", kernel.read(address, 8))[0]
                rows.append((before, value, time.clock_gettime(time.CLOCK_MONOTONIC)))
                time.sleep(2)
            return rows

    (first, low, _), (_, high, last) = as_user("alice", read)
    elapsed = (high - low) / 250  # CONFIG_HZ of Debian
    assert 1.9 <= elapsed <= last - first + 0.1, (elapsed, last - first)
    return f"{high - low} in {last - first:.2f} s"


def loadavg() -> str:
    """Avenrun is /proc/loadavg."""

    def read(client: Client) -> list[float]:
        with client.open() as kernel:
            data = kernel.read(kernel.symbol("avenrun").value, 24)
            return [value / 2048 for value in struct.unpack("<3Q", data)]

    def shown() -> list[float]:
        return [float(word) for word in Path("/proc/loadavg").read_text().split()[:3]]

    for _ in range(5):  # it changes every five seconds
        before, found, after = shown(), as_user("alice", read), shown()
        if all(min(b, a) - 0.011 <= f <= max(b, a) + 0.011 for b, f, a in zip(before, found, after, strict=True)):
            return f"{found[0]:.2f} {found[1]:.2f} {found[2]:.2f}"
    raise AssertionError((before, found, after))


def _kallsyms() -> tuple[dict[str, list[tuple[int, str]]], dict[str, list[tuple[int, str]]]]:
    kernel: dict[str, list[tuple[int, str]]] = {}
    modules: dict[str, list[tuple[int, str]]] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, letter, name, *module = line.split()
        table = modules if module else kernel
        table.setdefault(name, []).append((int(address, 16), letter))
    return kernel, modules


def symbols() -> str:
    """Every symbol of the kernel and of its modules is /proc/kallsyms's."""
    kernel, modules = _kallsyms()
    names = [*kernel, *(name for name in modules if name not in kernel)]

    def look_up(client: Client) -> dict[str, tuple[int, str] | None]:
        with client.open() as opened:
            found = opened.symbols(names)
        return {name: (symbol.value, symbol.module) if symbol else None for name, symbol in found.items()}

    found = as_user("alice", look_up)
    wrong = []
    for name in names:
        answer = found[name]
        wanted = {address for address, _ in kernel.get(name) or modules[name]}
        if answer is None or answer[0] not in wanted or bool(answer[1]) != (name not in kernel):
            wrong.append((name, answer, wanted))
    assert not wrong, (len(wrong), wrong[:10])
    return f"{len(kernel)} of the kernel, {len(names) - len(kernel)} of modules"


def new_module() -> str:
    """A module's symbols are found while it is loaded and no longer, by one descriptor."""

    def look_up(client: Client) -> list[str]:
        found = []
        with client.open() as kernel:
            for command in (["true"], ["rmmod", MODULE], ["insmod", f"/modules/{MODULE}.ko"]):
                subprocess.run(command, check=True)
                symbol = kernel.symbols([SYMBOL])[SYMBOL]
                found.append(symbol.module if symbol else "")
        return found

    found = as_user("root", look_up)  # who may load modules
    assert found == [MODULE, "", MODULE], found
    return f"{MODULE}: there, gone, there"


SYMBOLS = {f.__name__: f for f in (banner, info, jiffies, loadavg, symbols, new_module)}
