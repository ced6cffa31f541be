"""Checks of /dev/mem and of writes. The first sees the kernel as Debian ships it; the next lifts its STRICT_DEVMEM."""

from __future__ import annotations

import struct
from pathlib import Path

from live_access import reason

from guest import as_user, open_devmem
from libkvm.client import Client

# A number that the kernel only looks at when it panics, and shows in /proc/sys.
VARIABLE, SYSCTL = "panic_print", Path("/proc/sys/kernel/panic_print")
_READS = ("linux_banner", "init_task", "jiffies_64", "_text", "__per_cpu_offset", "swapper_pg_dir", "linux_proc_banner")


def _write(client: Client, value: int) -> int:
    with client.open(write=True) as kernel:
        return kernel.write(kernel.symbol(VARIABLE).value, struct.pack("<Q", value))


def strict_devmem() -> str:
    """The kernel as it comes refuses RAM through /dev/mem, and the message says what to do."""
    read = reason("alice", lambda client: client.open(corefile="/dev/mem").close())
    write = reason("alice", lambda client: _write(client, 1))
    for why in (read, write):
        assert why.startswith("STRICT_DEVMEM"), why
        assert "/proc/kcore" in why
        assert "STRICT_DEVMEM" in why
    return read


def devmem() -> str:
    """Where /dev/mem gives RAM, it reads as /proc/kcore does, by virtual and by physical address."""
    open_devmem()

    def compare(client: Client) -> int:
        total = 0
        with client.open() as kcore, client.open(corefile="/dev/mem") as mem:
            assert (kcore.info.format, mem.info.format) == ("kcore", "mem")
            for name in _READS:
                address = kcore.symbol(name).value
                assert mem.symbol(name).value == address
                length = 8 if name == "jiffies_64" else 64 if name == "init_task" else 256
                one, other = kcore.read(address, length), mem.read(address, length)
                assert one == other or name in ("jiffies_64", "init_task"), (name, one, other)
                total += length
            module = kcore.symbol("zram_add").value  # not in the direct mapping
            assert kcore.read(module, 64) == mem.read(module, 64)
            for address in (0x100000, 0x1000000, 0x2000000):
                assert kcore.read(address, 64, physical=True) == mem.read(address, 64, physical=True), hex(address)
            assert {p.pid for p in mem.processes()} & {1, 2}
            assert mem.argv(1) == kcore.argv(1)
        return total

    return f"{as_user('alice', compare)} bytes and some pages alike"


def devices() -> str:
    """What is no RAM is not read."""

    def read(client: Client) -> None:
        with client.open(corefile="/dev/mem") as kernel:
            kernel.read(0xFEE00000, 4, physical=True)  # the local APIC

    why = reason("alice", read)
    assert why.startswith("BEYOND_DUMP"), why
    return why


def write() -> str:
    """A variable is written: /proc/sys shows it, and it is read back; by both ways in."""
    before = int(SYSCTL.read_text())

    def change(client: Client) -> list[int]:
        seen = []
        for corefile, value in ((None, 0x15), ("/dev/mem", 0x2A), (None, before)):
            with client.open(corefile=corefile, write=True) as kernel:
                address = kernel.symbol(VARIABLE).value
                assert kernel.write(address, struct.pack("<Q", value)) == 8
                assert kernel.read(address, 8) == struct.pack("<Q", value)
            seen.append(int(SYSCTL.read_text()))
        return seen

    seen = as_user("alice", change)
    assert seen == [0x15, 0x2A, before], seen
    return f"{SYSCTL}: {seen}"


def write_refused() -> str:
    """Nothing is written without O_RDWR, without the verb, or to what is not mapped."""
    before = SYSCTL.read_text()

    def read_only(client: Client) -> None:
        with client.open() as kernel:
            kernel.write(kernel.symbol(VARIABLE).value, b"\1")

    def unmapped(client: Client) -> None:
        with client.open(write=True) as kernel:
            kernel.write(0xFFFFFFFFFFFFF000, b"\1")

    reasons = [reason("alice", read_only), reason("bob", lambda client: _write(client, 1)), reason("alice", unmapped)]
    words = [why.partition(":")[0] for why in reasons]
    assert words == ["WRITE_READ_ONLY", "POLICY_DENIED", "NOT_MAPPED"], reasons
    assert SYSCTL.read_text() == before
    return ", ".join(words)


MEMORY = {f.__name__: f for f in (strict_devmem, devmem, devices, write, write_refused)}
